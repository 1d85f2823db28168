"""The sweeper ``hydra/sweeper=grid``."""
