"""The loss and scores of a model on held-out records."""
