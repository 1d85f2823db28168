"""The file system that a path is on. No torch."""

from pathlib import Path

import psutil

NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "ceph", "glusterfs", "afs", "ocfs", "gfs", "fuse.")
"""File systems, by the beginning of their names, that other machines may write to at the same time."""

MEMORY = ("tmpfs", "ramfs")
"""File systems in main memory."""


def kind(path: Path) -> str:
    """The name of the file system of ``path``: ``ext4``; empty if it is not known."""
    target, best, found = path.resolve(), -1, ""
    for mount in psutil.disk_partitions(all=True):
        if target.is_relative_to(mount.mountpoint) and len(mount.mountpoint) > best:
            best, found = len(mount.mountpoint), mount.fstype
    return found


def is_network(path: Path) -> bool:
    """Whether other machines may write to the file system of ``path`` at the same time."""
    return kind(path).startswith(NETWORK)
