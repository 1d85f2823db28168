"""The NVIDIA cards of this machine, asked of the driver: NVML first, nvidia-smi where there is no NVML. No torch.

``nvml.py`` and ``smi.py`` ask, ``visible.py`` reads CUDA_VISIBLE_DEVICES as CUDA does.
"""

import os

from hydraft.system.driver import nvml, smi
from hydraft.system.driver.card import Answer

__all__ = ["ask"]


def ask() -> Answer:
    """All cards that the driver shows, whatever CUDA_VISIBLE_DEVICES says."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = nvml.ask(memory)
    return smi.ask(memory) if found is None else found
