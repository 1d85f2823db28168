"""Processes: ranks on this machine, over ssh, in Slurm jobs, and under other launchers."""
