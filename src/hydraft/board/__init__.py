"""The board: a local page of all runs and sweeps, live."""
