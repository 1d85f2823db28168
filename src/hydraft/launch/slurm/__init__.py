"""Ranks in a Slurm job."""
