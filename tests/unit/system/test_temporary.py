"""A temporary folder stays as long as its process runs, and is removed at the next start after that."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conftest import SCALE
from hydraft.system import temporary

OWNER = """
import sys, time
from hydraft.system import temporary
made = [temporary.make("notes"), temporary.make("run", kept=True)]
(made[0] / "0.pid").write_text("1")
print(*made, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@contextmanager
def owner(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path, Path]]:
    """A process with a temporary folder, and one that holds logs."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", OWNER], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        notes, run = map(Path, process.stdout.readline().split())
        yield process, notes, run
        process.kill()


def test_what_a_killed_process_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    with owner(tmp_path) as (process, notes, run):
        assert temporary.sweep() == []
        process.send_signal(signal.SIGKILL)
        process.wait(10 * SCALE)
    assert notes.exists()
    with temporary.folder("notes") as made:
        assert (notes.exists(), run.exists(), made.exists()) == (False, True, True)
        long_ago = time.time() - temporary.KEPT_SECONDS - 60
        os.utime(run, (long_ago, long_ago))
        assert temporary.sweep() == [run]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_stays_as_long_as_a_fork_of_its_process_runs(tmp_path: Path) -> None:
    made = temporary.make("notes")
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    os.close(temporary._locks.pop(made))  # as if this process had ended
    assert temporary.sweep() == []
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert temporary.sweep() == [made]


def test_nothing_else_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of other users and hosts, of other names, those that are being made, and links."""
    with owner(tmp_path) as (process, notes, _):
        process.kill()
    elsewhere = tmp_path.parent / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "hydraft-link").symlink_to(elsewhere, target_is_directory=True)
    for name in ("hydraft-new", "mine"):
        (tmp_path / name).mkdir()
    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as other:
        other.setattr(os, "geteuid", lambda: 12345)
        assert temporary.sweep() == []
    with monkeypatch.context() as other:
        other.setattr(socket, "gethostname", lambda: "another")
        assert temporary.sweep() == []
    assert sorted(tmp_path.iterdir()) == before
    assert temporary.sweep() == [notes]
    long_ago = time.time() - temporary.UNKNOWN_SECONDS - 60
    for name in ("hydraft-new", "mine"):
        os.utime(tmp_path / name, (long_ago, long_ago))
    assert temporary.sweep() == [tmp_path / "hydraft-new"]
    assert elsewhere.exists() and (tmp_path / "mine").exists()
