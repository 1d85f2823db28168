"""NVIDIA GPUs of this machine, as the driver reports them: NVML first, then nvidia-smi. No torch."""
