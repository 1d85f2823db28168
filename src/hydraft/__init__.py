"""hydraft: a Hydra-composed experiment framework for fine-tuning language models."""
