"""Model classes of our own, for architectures that transformers does not have; a module here is copied into each saved model's folder."""
