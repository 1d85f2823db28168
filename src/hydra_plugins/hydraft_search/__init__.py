"""The sweeper ``hydra/sweeper=search``."""
