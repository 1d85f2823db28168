"""Keeps the memory that a pass has freed for the next one, on the CPU.

glibc returns large blocks to the system as they are freed (mallopt(3)). The tensors of a pass over several members are so large that each
pass would get its memory anew, page by page, which took a tenth to a third of its time where this was measured.
"""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt: the unused bytes at the end of the heap, and the size of a block, from which on they are returned."""

KEPT, LARGEST = 2**30, 32 * 2**20
"""Bytes: of what is unused, and the largest threshold that glibc accepts for a block."""


def keep_freed_memory() -> None:
    """Do so from now on, in this process; nothing where the C library is another one."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGEST)
        mallopt(TRIM_THRESHOLD, KEPT)
