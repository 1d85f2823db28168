"""Queries the driver for the NVIDIA GPUs of this machine: through NVML, or nvidia-smi if NVML is not available. No torch."""

import os

from hydraft.system.driver import nvml, smi
from hydraft.system.driver.card import DriverInfo


def query() -> DriverInfo:
    """All cards that the driver lists, whatever CUDA_VISIBLE_DEVICES is set to."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = nvml.query(memory)
    return smi.query(memory) if found is None else found
