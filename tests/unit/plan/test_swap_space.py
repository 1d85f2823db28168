"""Refusals of the folder for swap files, each with its reason."""

import os
import shutil
import tempfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import config_of
from hydraft.errors import ConfigError
from hydraft.plan import swap_space
from hydraft.system import mounts, temporary


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder that is not in main memory."""
    made = Path(tempfile.mkdtemp(dir="/var/tmp"))
    yield made
    shutil.rmtree(made)


def refusal(folder: object, *overrides: str) -> str:
    config = config_of("zero=stage3_nvme", f"zero.nvme_path={folder}", *overrides)
    with pytest.raises(ConfigError) as found:
        swap_space.check(config)
    return str(found.value)


def test_a_folder_that_cannot_be_used_is_refused(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is not a folder" in refusal(disk / "absent")
    if mounts.kind(Path("/dev/shm")) in mounts.MEMORY:
        assert "is in main memory" in refusal("/dev/shm")
    monkeypatch.setattr(mounts, "kind", lambda path: "nfs4")
    assert "is on a network file system (nfs4)" in refusal(disk)


def test_what_does_not_fit_is_refused_with_both_numbers(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 0, 2**20))
    said = refusal(disk, "cluster=1x2")
    assert "the swap files of this machine's ranks take 2.2 MiB, and 1.0 MiB are free there" in said
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 0, 2**30))
    swap_space.check(config_of("zero=stage3_nvme", f"zero.nvme_path={disk}", "cluster=1x2"))
    assert list(disk.iterdir()) == []  # of what was tried


def test_the_folder_of_a_killed_run_is_removed_and_that_of_a_run_is_kept(disk: Path) -> None:
    if (child := os.fork()) == 0:
        temporary.make("swap", within=disk)
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    (left,) = disk.iterdir()
    with temporary.folder("swap", disk) as used:
        assert not left.exists()
        swap_space.check(config_of("zero=stage3_nvme", f"zero.nvme_path={disk}"))
        assert used.exists()
