"""Ops are built in a writable folder, with this code, and only if they are needed; locks of killed builds are removed."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, config_of, run_script
from hydraft.errors import ConfigError
from hydraft.system.hardware import Gpu, Hardware
from hydraft.training import deepspeed_ops, op_build


@pytest.fixture
def extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(deepspeed_ops, "folder", lambda: tmp_path)
    (tmp_path / "cpu_adam").mkdir()
    return tmp_path


def test_a_stale_lock_is_removed(extensions: Path) -> None:
    lock = extensions / "cpu_adam" / "lock"
    # What torch's FileBaton does, in a process that dies.
    code = f"import os; os.open({str(lock)!r}, os.O_CREAT | os.O_EXCL); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert lock.exists()
    assert deepspeed_ops.clear_locks() == [lock]
    assert not lock.exists()


def test_a_lock_that_is_held_is_kept(extensions: Path) -> None:
    lock = extensions / "cpu_adam" / "lock"
    handle = os.open(lock, os.O_CREAT | os.O_EXCL)
    assert deepspeed_ops.clear_locks() == []
    assert lock.exists()
    os.close(handle)
    assert deepspeed_ops.clear_locks() == [lock]


def test_only_one_process_builds(extensions: Path) -> None:
    """The build is protected by a lock that the kernel releases when its process ends."""
    from filelock import FileLock, Timeout

    with FileLock(extensions / ".build"):
        code = f"import fcntl; fcntl.flock(open({str(extensions / '.build')!r}, 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode != 0
    with (extensions / ".build").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(Timeout):
            FileLock(extensions / ".build", timeout=0.1).acquire()


def test_the_ops_that_a_run_needs() -> None:
    cpu, card = Hardware(), Hardware(gpus=(Gpu("A100", 1, 8.0),))
    assert deepspeed_ops.needed(config_of(), cpu) == [deepspeed_ops.SHARED_MEMORY]
    assert deepspeed_ops.needed(config_of("zero=stage3_offload"), cpu) == [
        deepspeed_ops.SHARED_MEMORY,
        deepspeed_ops.CPU_ADAM,
    ]
    assert deepspeed_ops.needed(config_of("zero=stage3_nvme", "zero.nvme_path=/var/tmp"), card) == [
        deepspeed_ops.CPU_ADAM,
        deepspeed_ops.PIN_MEMORY,
        deepspeed_ops.ASYNC_IO,
    ]
    assert deepspeed_ops.needed(config_of(), card) == []
    assert deepspeed_ops.needed(config_of("zero=stage2_offload"), card) == [deepspeed_ops.CPU_ADAM]


def test_nothing_is_written_where_no_op_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert deepspeed_ops.prepare([], Hardware(gpus=(Gpu("A100", 1, 8.0),))) == []
    assert list(tmp_path.iterdir()) == []


def test_in_a_read_only_environment_ops_go_to_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = tmp_path / "environment"
    prefix.mkdir()
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    assert deepspeed_ops.folder() == prefix / "torch_extensions"
    writable = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: prefix not in (Path(path), *Path(path).parents) and writable(path, mode))  # fmt: skip
    assert deepspeed_ops.folder().parent == tmp_path / "cache" / "ops"
    assert deepspeed_ops.environment(Hardware())["TORCH_EXTENSIONS_DIR"] == str(deepspeed_ops.folder())
    (tmp_path / "cache").write_text("")  # nor can that be written to
    with pytest.raises(ConfigError, match="HYDRAFT_CACHE="):
        deepspeed_ops.prepare([deepspeed_ops.CPU_ADAM], Hardware())


def test_a_build_finds_this_code_and_reports_why_it_failed(extensions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process without PYTHONPATH, as in a checkout that is not installed."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    started: list[dict[str, str]] = []

    def run(command: list[str], env: dict[str, str], **more: object) -> object:
        started.append(env)
        where = [command[0], "-c", "import hydraft; print(hydraft.__file__); raise SystemExit(1)"]
        return subprocess_run(where, env=env, **more)

    subprocess_run = subprocess.run
    monkeypatch.setattr(deepspeed_ops.subprocess, "run", run)
    with pytest.raises(ConfigError) as refusal:
        deepspeed_ops.prepare([deepspeed_ops.CPU_ADAM], Hardware())
    assert f"cpu_adam does not compile here: {ROOT / 'src' / 'hydraft' / '__init__.py'}; " in str(refusal.value)
    assert started[0]["PYTHONPATH"].split(os.pathsep)[0] == str(ROOT / "src")


TRACEBACK = "Traceback (most recent call last):\n  File 'x', line 1\n"
LOGS = [
    ("[1/2] c++ -MMD\nFAILED: a.o\na.cpp:3:10: fatal error: omp.h: No such file or directory\ncompilation terminated.\n"
     f"ninja: build stopped: subcommand failed.\n{TRACEBACK}RuntimeError: Error building extension 'cpu_adam'\n",
     "a.cpp:3:10: fatal error: omp.h: No such file or directory"),
    (f"{TRACEBACK}ModuleNotFoundError: No module named 'hydraft'\n", "ModuleNotFoundError: No module named 'hydraft'"),
    ("a.o: undefined reference to `x'\ncollect2: error: ld returned 1 exit status\n", "a.o: undefined reference to `x'"),
    ("Killed\n", "Killed"),
    ("", "it printed nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("log", "cause"), LOGS)
def test_the_most_informative_line_is_reported(log: str, cause: str, tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text(log)
    assert op_build.cause(file) == cause


@pytest.mark.parametrize("name", [deepspeed_ops.CPU_ADAM, deepspeed_ops.SHARED_MEMORY])
def test_what_is_missing_is_named_before_a_build(name: str, extensions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only for CPU Adam another setting is suggested: runs on CPUs always need the op for shared memory."""
    monkeypatch.setattr(op_build, "cause", lambda log: pytest.fail("a build was tried"))
    monkeypatch.setattr(deepspeed_ops, "has_headers", lambda: False)
    with pytest.raises(
        ConfigError, match=r"Python\.h, which was not found: install it \(Debian: apt-get install python3-dev\)"
    ) as headers:
        deepspeed_ops.prepare([name], Hardware())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler, and no-such-compiler was not found") as compiler:
        deepspeed_ops.prepare([name], Hardware())
    for refusal in (headers, compiler):
        assert ("zero.offload_optimizer=none" in str(refusal.value)) is (name == deepspeed_ops.CPU_ADAM)
        assert "cluster=1x1" not in str(refusal.value)


def test_a_missing_libaio_is_named_with_its_packages(
    extensions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "c++"  # for which there is no libaio
    compiler.write_text('#!/bin/sh\ncase "$*" in *-laio*) exit 1;; esac\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(op_build, "cause", lambda log: pytest.fail("a build was tried"))
    with pytest.raises(
        ConfigError, match=r"apt-get install libaio-dev; RHEL: dnf install libaio-devel\); or use zero=stage3_offload"
    ):
        deepspeed_ops.prepare([deepspeed_ops.ASYNC_IO], Hardware())


def test_a_stale_lock_does_not_stop_a_run(tmp_path: Path, records: Path) -> None:
    deepspeed_ops.prepare([deepspeed_ops.SHARED_MEMORY], Hardware())
    lock = deepspeed_ops.folder() / deepspeed_ops.SHARED_MEMORY / "lock"
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
