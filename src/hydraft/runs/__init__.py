"""A run's folder, resuming a run, and consistency between hosts."""
