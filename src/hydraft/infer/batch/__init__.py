"""mode=batch: a file of prompts."""
