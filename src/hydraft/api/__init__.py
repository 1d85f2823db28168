"""Use from Python: compose, plan, train, sweep and load, and what came of runs and sweeps. ``import hydraft`` has its names."""
