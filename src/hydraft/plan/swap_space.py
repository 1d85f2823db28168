"""Checks on this machine the folder that a run keeps weights and optimizer state in (``zero.nvme_path``). No torch."""

import mmap
import os
import shutil
import tempfile
from pathlib import Path

from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.plan.memory_parts import size
from hydraft.plan.parameters import trained_in
from hydraft.plan.plan import known_layout
from hydraft.plan.swap import swap
from hydraft.system import mounts, temporary

SAMPLE = 1 << 20
"""Bytes that are written to see whether the disk can be written to as DeepSpeed does."""


def check(config: Config) -> None:
    """Refuse a folder that the swap files of this machine's ranks cannot be in; those of killed runs are removed first.

    Raises:
        ConfigError: the message names the folder.
    """
    if not config.zero.swaps or config.zero.nvme_path is None:
        return
    folder = Path(config.zero.nvme_path).expanduser()
    name = f"zero.nvme_path={config.zero.nvme_path}"
    if not folder.is_dir():
        raise ConfigError(f"{name} is not a folder: make it on a local disk, or give another one")
    if (kind := mounts.kind(folder)).startswith(mounts.NETWORK):
        raise ConfigError(f"{name} is on a network file system ({kind}): give a folder on a disk of this machine")
    if kind in mounts.MEMORY:
        raise ConfigError(
            f"{name} is in main memory ({kind}): give a folder on a disk, or use zero=stage3_offload, which keeps all in main memory"
        )
    _write_directly(folder, name)
    temporary.sweep(folder)
    known, _ = known_layout(config)
    if known is None:
        return
    needed = swap(config, known, trained_in(known, config)).total * config.cluster.ranks_here
    if (free := shutil.disk_usage(folder).free) < needed:
        raise ConfigError(
            f"{name}: the swap files of this machine's ranks take {size(needed)}, and {size(free)} are free there: give a folder on another disk"
        )


def _write_directly(folder: Path, name: str) -> None:
    """Write a file without the page cache, as DeepSpeed does, and remove it."""
    try:
        handle, file = tempfile.mkstemp(prefix=temporary.PREFIX, dir=folder)
    except OSError as error:
        raise ConfigError(f"{name} cannot be written to ({error.strerror}): give another folder") from None
    os.close(handle)
    try:
        handle = os.open(file, os.O_RDWR | os.O_DIRECT)
        try:
            with mmap.mmap(-1, SAMPLE) as block:  # aligned to a page
                os.write(handle, block)
        finally:
            os.close(handle)
    except OSError as error:
        raise ConfigError(
            f"{name}: its file system does not support direct writes ({error.strerror}): give a folder on a local disk, such as ext4 or xfs"
        ) from None
    finally:
        Path(file).unlink()
