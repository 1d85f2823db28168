"""Held-out loss and scores."""
