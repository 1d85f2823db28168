"""Inference: generate, chat, batch, export and serve."""
