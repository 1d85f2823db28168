"""Callbacks of the Trainer, one file each."""
