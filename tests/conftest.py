"""What the tests share: composing a config, running train.py as a person does, and a model folder to train."""

import contextlib
import gc
import json
import multiprocessing
import multiprocessing.context
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from lab import Lab
    from serving import Server
    from slurm_cluster import Slurm
    from warm_python import WarmPython

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in a run: threads that spin starve the ranks beside them

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # bench/ is no package of the environment

import reaper  # noqa: E402
import warm_command  # noqa: E402
from bench.equivalence import compose_run  # noqa: E402
from hydraft.config.schema import Config  # noqa: E402
from hydraft.launch.local import elastic  # noqa: E402
from hydraft.system.hardware import detect  # noqa: E402
from hydraft.system.source_tree import TINY  # noqa: E402

RECORDS = [{"instruction": f"第{i}题：{i}加一等于几？", "input": "", "output": f"等于{i + 1}。"} for i in range(24)]

READ_AT_IMPORT = {"HF_HUB_OFFLINE", "OMP_WAIT_POLICY", "PYTHONPATH", "PYTHONPROFILEIMPORTTIME", "TRITON_INTERPRET"}
"""Variables that a process with the stack in memory reads no more."""

SCALE = float(os.environ.get("HYDRAFT_TEST_TIMEOUT_SCALE", "1"))
"""On a slow machine, the factor by which tests wait longer before they fail."""

HANG_TIMEOUT = 10 * SCALE
"""``cluster.hang_timeout`` where a hang is to be found: more than ranks that share cores with other tests ever take for a step."""


def pytest_configure(config: pytest.Config) -> None:
    """What the tests expect is of CPUs: a card is left alone, by them and by all that they start, unless ``-m gpu`` asks for it."""
    if not re.search(r"(?<!not )\bgpu\b", config.option.markexpr):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    worker = hasattr(config, "workerinput")
    reaper.start(worker)
    if worker:  # side by side, each has its share of the machine, as the jobs of a sweep have
        cores = max(1, len(os.sched_getaffinity(0)) // config.workerinput["workercount"])
        os.environ["HYDRAFT_CORES"] = str(cores)
        torch.set_num_threads(cores)
    if getattr(config.option, "timeout", None) and not worker:  # a worker has its controller's options
        config.option.timeout *= SCALE


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked gpu need one."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
    if hasattr(config, "workerinput"):
        import balance  # tests/support; pytest-xdist is installed

        balance.in_order(items)


@pytest.hookimpl(optionalhook=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Leave what the imports created out of garbage collection, in this process and in those forked from it."""
    gc.freeze()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Side by side (pytest-xdist), a file's tests stay together, and so do those of many machines."""
    import balance  # tests/support

    return balance.ByGroup(config, log)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """24 short records of different lengths in a .json file."""
    file = tmp_path / "records.json"
    file.write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    return file


@pytest.fixture
def untemplated(tmp_path: Path) -> list[str]:
    """Overrides that only a rank can find wrong: a model whose tokenizer has no chat template."""
    folder = tmp_path / "untemplated"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("chat_template.jinja"))
    return ["model=auto", f"model.path={folder}"]


def config_of(*overrides: str) -> Config:
    """The checked config of ``python train.py <overrides>``."""
    return compose_run(list(overrides))


def run_script(
    script: str, *arguments: str, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``script`` as a person would, and wait.

    Its process is forked from one that has imported the stack, which saves each command some ten seconds; with a variable
    that is read as Python starts or as a package is imported, it starts from nothing.
    """
    if READ_AT_IMPORT & environment.keys():
        return subprocess.run(
            [sys.executable, str(ROOT / script), *arguments],
            capture_output=True,
            text=True,
            timeout=timeout * SCALE,
            cwd=ROOT,
            env={**os.environ, **environment},
            check=False,
        )
    with tempfile.TemporaryDirectory() as streams:
        process = start_script(script, *arguments, streams=streams, **environment)
        return completed(process, [script, *arguments], Path(streams), timeout)


def run_code(code: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program as ``run_script`` does; it is written to a file in ``folder``."""
    script = folder / "program.py"
    script.write_text(code, encoding="utf-8")
    return run_script(str(script), *arguments)


def completed(
    process: multiprocessing.context.ForkServerProcess, command: list[str], streams: Path, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Wait for a process of ``start_script``.

    Raises:
        subprocess.TimeoutExpired: it has not ended in ``timeout`` seconds, and has been killed.
    """
    process.join(timeout * SCALE)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired(command, timeout * SCALE)
    out, err = ((streams / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
    return subprocess.CompletedProcess(command, process.exitcode, out, err)


def start_script(
    script: str, *arguments: str, streams: str | Path, folder: Path = ROOT, **environment: str
) -> multiprocessing.context.ForkServerProcess:
    """Start ``script`` in ``folder`` as ``run_script`` does; what it prints goes to the files out and err in ``streams``."""
    elastic.start_fork_server(detect())
    process = multiprocessing.get_context("forkserver").Process(
        target=warm_command.run, args=(folder, ROOT / script, arguments, {**os.environ, **environment}, streams)
    )
    process.start()
    return process


def run_ranks(script: str, arguments: list[str], ranks: int) -> Any:
    """Run ``script`` on ``ranks`` ranks on the CPU, with ``cluster=1xN`` added to each argument: the JSON that rank 0 prints last."""
    return on_ranks(script, [f"{argument} cluster=1x{ranks}" for argument in arguments], ranks)


def on_ranks(script: str, arguments: list[str], ranks: int) -> Any:
    """Run ``script`` on ``ranks`` ranks on the CPU: the JSON that rank 0 prints last."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, str(rank)) for rank in range(ranks)]
        processes = []
        for rank, place in enumerate(streams):
            place.mkdir()
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(start_script(script, *arguments, streams=place, **shared, **own))
        done = [completed(*both, 400) for both in zip(processes, [[script]] * ranks, streams, strict=True)]
    assert all(rank.returncode == 0 for rank in done), done[0].stderr[-2000:]
    return json.loads(done[0].stdout.splitlines()[-1])


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Seconds until ``condition`` held."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds * SCALE, f"{what}: not within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - start


@pytest.fixture
def survivors() -> Iterator[list[psutil.Process]]:
    """A list to put processes in; any of them still there after the test is ended."""
    processes: list[psutil.Process] = []
    yield processes
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator["WarmPython"]:
    """A Python for commands that other programs start, which has the libraries in memory."""
    from warm_python import WarmPython  # tests/support

    with WarmPython(tmp_path_factory.mktemp("python")) as started:
        yield started


@pytest.fixture(scope="session")
def lab(python: "WarmPython", tmp_path_factory: pytest.TempPathFactory) -> Iterator["Lab"]:
    """Two hosts behind a bridge, for the tests of many machines."""
    from lab import Lab, missing  # tests/support

    if reason := missing():
        pytest.skip(reason)
    hosts = Lab(tmp_path_factory.mktemp("lab"), python)
    try:
        hosts.start()
        yield hosts
    finally:
        hosts.stop()


@pytest.fixture(scope="session")
def slurm() -> Iterator["Slurm"]:
    """A Slurm of two machines."""
    from slurm_cluster import Slurm  # tests/support

    with Slurm() as started:
        yield started


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters of the embedded model."""
    from serving import make_adapters  # tests/support

    return make_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="session")
def server(adapters: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator["Server"]:
    """A server of the embedded model and its adapters; few may wait, so that a test can fill it."""
    from serving import Server

    settings = ("serve.max_running=6", "serve.max_waiting=6")
    made = Server(adapters, tmp_path_factory.mktemp("server") / "streams", settings)
    try:
        yield made.start()
    finally:
        code = made.end()
    assert code == 0, made.said()
