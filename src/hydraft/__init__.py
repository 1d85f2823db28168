"""hydraft: a Hydra-composed experiment framework for fine-tuning language models."""

__version__ = "0.1.0"
