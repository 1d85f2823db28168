"""Tests that need one GPU."""
