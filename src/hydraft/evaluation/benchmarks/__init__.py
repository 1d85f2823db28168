"""Benchmarks of lm-evaluation-harness, with its own tasks, prompts and scores, on a loaded model."""
