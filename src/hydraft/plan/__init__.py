"""What a run costs, and whether it may start."""
