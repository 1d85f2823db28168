"""Ranks that torchrun, deepspeed, accelerate or srun started."""
