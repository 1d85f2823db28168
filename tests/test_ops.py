"""A lock that a killed build left behind is cleared; one that a build holds is not."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import config_of, run_script
from hydraft import ops
from hydraft.hardware import Gpu, Hardware


@pytest.fixture
def extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ops, "folder", lambda: tmp_path)
    (tmp_path / "cpu_adam").mkdir()
    return tmp_path


def test_a_lock_without_a_holder_is_cleared(extensions: Path) -> None:
    lock = extensions / "cpu_adam" / "lock"
    # What torch's FileBaton does, in a process that dies.
    code = f"import os; os.open({str(lock)!r}, os.O_CREAT | os.O_EXCL); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert lock.exists()
    assert ops.clear_locks() == [lock]
    assert not lock.exists()


def test_a_lock_with_a_holder_stays(extensions: Path) -> None:
    lock = extensions / "cpu_adam" / "lock"
    handle = os.open(lock, os.O_CREAT | os.O_EXCL)
    assert ops.clear_locks() == []
    assert lock.exists()
    os.close(handle)
    assert ops.clear_locks() == [lock]


def test_only_one_process_builds(extensions: Path) -> None:
    """The build itself is guarded by a lock that the kernel frees with its holder."""
    from filelock import FileLock, Timeout

    with FileLock(extensions / ".build"):
        code = f"import fcntl; fcntl.flock(open({str(extensions / '.build')!r}, 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode != 0
    with (extensions / ".build").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(Timeout):
            FileLock(extensions / ".build", timeout=0.1).acquire()


def test_a_run_asks_for_the_ops_it_loads() -> None:
    cpu, card = Hardware(), Hardware(gpus=(Gpu("A100", 1, 8.0),))
    assert ops.needed(config_of(), cpu) == [ops.SHARED_MEMORY]
    assert ops.needed(config_of("zero=stage3_offload"), cpu) == [ops.SHARED_MEMORY, ops.CPU_ADAM]
    assert ops.needed(config_of(), card) == []
    assert ops.needed(config_of("zero=stage2_offload"), card) == [ops.CPU_ADAM]


@pytest.mark.slow
def test_a_planted_lock_does_not_stop_a_run(tmp_path: Path, records: Path) -> None:
    ops.prepare([ops.SHARED_MEMORY], Hardware())
    lock = ops.folder() / ops.SHARED_MEMORY / "lock"
    lock.touch()
    try:
        run = run_script(
            "train.py", f"data.train={records}", "data.eval=null", "train.max_steps=1", f"hydra.run.dir={tmp_path / 'run'}",
            timeout=120,
        )  # fmt: skip
        cleared = not lock.exists()  # by this run, or by a run of a test beside this one
    finally:
        lock.unlink(missing_ok=True)
    assert run.returncode == 0, run.stderr
    assert cleared
