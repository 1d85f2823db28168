"""Builds of DeepSpeed's ops: what they were built from, and locks whose holder is killed, lives elsewhere, or is another user's."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from filelock import FileLock
from torch.utils import cpp_extension

from conftest import SCALE
from hydraft.system import files
from hydraft.training import deepspeed_ops, op_locks, op_marker

NOBODY = 65534


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """torch's lock of an op that is not built."""
    (tmp_path / "an_op").mkdir()
    return tmp_path / "an_op" / "lock"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a wait for a lock tells; torch's lock is ours in the test."""
    lines: list[str] = []
    monkeypatch.setattr(cpp_extension, "FileBaton", cpp_extension.FileBaton)
    op_locks.install(lines.append)
    return lines


def baton(lock: Path) -> Any:
    """As torch takes it for a build."""
    return cpp_extension.FileBaton(str(lock))  # type: ignore[attr-defined]


@contextmanager
def in_fork(act: Callable[[], object]) -> Iterator[int]:
    """A fork of this process that calls ``act`` and then lives until it is killed; yields its id when it has done so."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        act()
        os.write(writing, b".")
        time.sleep(60)
        os._exit(0)
    os.read(reading, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_is_cleared_while_another_waits_for_its_killed_holder(lock: Path, said: list[str]) -> None:
    with in_fork(lambda: baton(lock).try_acquire()) as holder:
        threading.Timer(0.5, os.kill, [holder, signal.SIGKILL]).start()
        mine = baton(lock)
        began = time.monotonic()
        assert mine.try_acquire() is True  # torch then builds
        assert 0.4 < time.monotonic() - began < 10 * SCALE
        assert said[0].startswith("waiting 0 s for process ") and f"process {holder} of user " in said[0]
        assert op_locks.read(lock) == json.loads(op_locks.describe_self())
        mine.release()


def test_a_wait_for_a_build_that_completes_ends_without_another(lock: Path, said: list[str]) -> None:
    mine = baton(lock)
    assert mine.try_acquire() is True
    found: list[bool] = []
    waiter = threading.Thread(target=lambda: found.append(baton(lock).try_acquire()))
    waiter.start()
    time.sleep(0.3)
    assert found == [] and lock.exists()
    lock.with_name("an_op.so").touch()
    mine.release()
    waiter.join(10 * SCALE)
    assert found == [False]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_another_users_build_is_waited_for_and_named(lock: Path, said: list[str]) -> None:
    lock.parent.chmod(0o777)
    for above in list(lock.parents)[1:-2]:
        above.chmod(above.stat().st_mode | 0o011)

    def build_as_nobody() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        baton(lock).try_acquire()

    with in_fork(build_as_nobody) as holder:
        assert op_locks.clear(lock) is False
        assert f"process {holder} of user nobody on {socket.gethostname()}, which builds an_op" in op_locks.waiting(
            lock, 0
        )
    assert op_locks.clear(lock) is True


def test_a_build_on_another_host_is_waited_for_and_named(lock: Path) -> None:
    lock.write_text(json.dumps({"host": "worker-7", "user": "ann", "pid": 1, "started": 1}))
    assert op_locks.clear(lock) is False
    assert f"process 1 of user ann on worker-7, which builds an_op (if it is gone, remove {lock})" in op_locks.waiting(
        lock, 0
    )


def test_an_id_that_the_kernel_has_given_away_holds_no_lock(lock: Path) -> None:
    mine = json.loads(op_locks.describe_self())
    lock.write_text(json.dumps({**mine, "started": mine["started"] - 1}))
    assert op_locks.clear(lock) is True


def test_a_lock_stays_while_a_compiler_of_its_killed_holder_runs(lock: Path, said: list[str]) -> None:
    with in_fork(lambda: baton(lock).try_acquire()):
        pass
    with subprocess.Popen(["sleep", "60"], cwd=lock.parent) as compiler:
        assert op_locks.clear(lock) is False
        compiler.kill()
    assert op_locks.clear(lock) is True


def test_a_wait_for_another_command_that_builds_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deepspeed_ops, "folder", lambda: tmp_path)
    monkeypatch.setattr(op_locks, "SAY_SECONDS", 0.2)

    held: list[FileLock] = []

    def hold() -> None:
        held.append(FileLock(tmp_path / ".build"))
        held[0].acquire()
        (tmp_path / ".building").write_text(op_locks.describe_self())

    with in_fork(hold) as holder:
        threading.Timer(0.5, os.kill, [holder, signal.SIGKILL]).start()
        with deepspeed_ops._build_lock():
            pass
        assert f"s for process {holder} of user " in capfd.readouterr().err


@pytest.fixture
def op(tmp_path: Path) -> Path:
    """An op that ninja has built from a source, with the marker that a build leaves."""
    made, source = tmp_path / "project" / "an_op", tmp_path / "source.cpp"
    made.mkdir(parents=True)
    source.write_text("1")
    (made / "build.ninja").write_text(f"rule copy\n  command = cp $in $out\nbuild an_op.so: copy {source}\n")
    subprocess.run(
        ["ninja", "-C", str(made)], env={**os.environ, "PATH": op_marker.search_path()}, check=True, capture_output=True
    )
    op_marker.write(made)
    assert op_marker.is_current(made)
    return made


def test_an_op_is_built_again_in_a_project_that_was_moved_or_copied(op: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy" / "an_op"
    copytree(op, copied)
    assert not op_marker.is_current(copied)
    op.parent.rename(tmp_path / "moved")
    assert not op_marker.is_current(tmp_path / "moved" / "an_op")


CHANGES: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "torch": lambda op, patch: patch.setattr(files, "version_of", lambda name: "0.0"),
    "python": lambda op, patch: patch.setattr(sys, "version", "3.99"),
    "compiler": lambda op, patch: patch.setenv("CXX", "clang++"),
    "flags": lambda op, patch: patch.setenv("CFLAGS", "-O0"),
    "source": lambda op, patch: os.utime(op.parents[1] / "source.cpp", (time.time() + 60,) * 2),
    "build file": lambda op, patch: (op / "build.ninja").write_text((op / "build.ninja").read_text() + "# -O0\n"),
    "library": lambda op, patch: (op / "an_op.so").unlink(),
    "torn marker": lambda op, patch: (op / op_marker.NAME).write_text('{"folder"'),
}


@pytest.mark.parametrize("changed", CHANGES)
def test_an_op_is_built_again_after_a_change(changed: str, op: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CHANGES[changed](op, monkeypatch)
    assert not op_marker.is_current(op)


def test_an_op_of_an_earlier_version_is_kept_if_it_is_of_these_packages(
    op: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (op / op_marker.NAME).write_text("")  # what it left
    assert not op_marker.is_current(op)
    packages = "".join(f"# {op_marker._package(name)}/\n" for name in ("torch", "deepspeed"))
    (op / "build.ninja").write_text((op / "build.ninja").read_text() + packages)
    assert op_marker.is_current(op)
    assert op_marker.read(op) and op_marker.is_current(op)


def test_machines_with_other_cpus_build_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    own = tmp_path / "torch_extensions"
    (own / "cpu_adam").mkdir(parents=True)
    assert deepspeed_ops.folder() == own
    op_marker.write(own / "cpu_adam")
    assert deepspeed_ops.folder() == own
    known = {**(op_marker.read(own / "cpu_adam") or {}), "cpu": "another"}
    files.write_json(own / "cpu_adam" / op_marker.NAME, known)
    assert deepspeed_ops.folder() == own / f"cpu-{op_marker.cpu()}"
