"""The launcher ``hydra/launcher=pool``."""
