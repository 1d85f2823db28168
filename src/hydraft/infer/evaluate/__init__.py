"""Benchmarks on a trained model."""
