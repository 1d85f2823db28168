"""Converts published checkpoints to native ones."""
