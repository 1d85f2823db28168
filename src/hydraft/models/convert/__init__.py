"""Published checkpoints to ones that transformers loads."""
