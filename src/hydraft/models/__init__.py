"""A model section to a loaded model."""
