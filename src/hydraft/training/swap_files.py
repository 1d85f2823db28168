"""Swap files of a rank: the weights and the optimizer state that ZeRO-3 keeps on a disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydraft.config.zero import ZeroConfig
from hydraft.system import temporary

KIND = "swap"


@contextmanager
def folder(zero: ZeroConfig) -> Iterator[Path | None]:
    """This rank's folder in ``zero.nvme_path`` for the length of the block; None for a run that keeps nothing on a disk.

    Those of killed runs are removed first.
    """
    if not zero.swaps:
        yield None
        return
    assert zero.nvme_path is not None, "config/zero_rules.py"
    with temporary.folder(KIND, Path(zero.nvme_path).expanduser()) as made:
        yield made
