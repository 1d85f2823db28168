"""``mode=verify`` of infer.py: a server's answers beside those of the trained model."""
