"""A machine with a simulated GPU: forked processes can use it, and a run resumes from its checkpoint.

Every call that would touch CUDA's driver is logged (``tests/support/pretend_cuda``), with the forks of processes that
made one.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from conftest import ROOT, SCALE, run_script
from hydraft.launch.local import fork_server
from hydraft.launch.local.rank import read_failures
from touches import calls, environment, touching
from warm_python import WarmPython

pytestmark = pytest.mark.skipif(
    torch.backends.cuda.is_built(), reason="torch has CUDA here: pytest -m gpu tests the real GPU"
)
SHORT = ["quant=none", "data.eval=null", "train.precision=fp32", "train.log_every=1"]
SERVER = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "DS_ACCELERATOR": "cuda"}
"""What a fork server has in its environment on a machine with a GPU."""

JOB = """
import hydra

@hydra.main(version_base="1.3", config_path=None)
def task(config):
    import os, sys
    print("forked" if "warmed" in sys.modules else "spawned", flush=True)

if __name__ == "__main__":
    task()
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmPython]:
    """A Python that has the preloaded modules in memory, imported with the simulated GPU; ``log`` beside it has their calls."""
    folder = tmp_path_factory.mktemp("with-gpu")
    with WarmPython(folder, {**environment(folder / "log"), **SERVER}) as started:
        yield started


def run_with(
    python: WarmPython, log: Path, *arguments: str, folder: Path = ROOT, **more: str
) -> "subprocess.CompletedProcess[str]":
    """Run ``python arguments`` in ``folder`` with the simulated GPU, and wait."""
    command, variables = [str(python.path), *arguments], {**os.environ, **environment(log), **more}
    return subprocess.run(
        command, cwd=folder, env=variables, capture_output=True, text=True, timeout=300 * SCALE, check=False
    )


def test_the_preloaded_modules_do_not_touch_the_driver_and_the_others_do(python: WarmPython, tmp_path: Path) -> None:
    """The others are imported in forks of a process that has imported the preloaded modules."""
    assert calls(python.path.with_name("log")) == []
    for name in fork_server.TOUCHING[:2]:
        done = run_with(python, tmp_path / name, "-c", f"import {name}", **SERVER)
        assert done.returncode == 0, done.stderr
        assert calls(tmp_path / name)[0]["call"] == "_cuda_init"


def test_without_nvml_counting_gpus_touches_the_driver(python: WarmPython, tmp_path: Path) -> None:
    found = touching("torch, torch.cuda; torch.cuda.is_available()", PRETEND_CUDA_NVML="0")
    assert [call["call"] for call in found] == ["_cuda_getDeviceCount"]
    count = "import torch; print(torch.cuda.is_available())"
    assert run_with(python, tmp_path / "log", "-c", count, **SERVER).stdout == "True\n"
    assert calls(tmp_path / "log") == []


def test_debug_cpu_does_not_touch_the_gpu(python: WarmPython, records: Path, tmp_path: Path) -> None:
    typed = ["debug=cpu", f"data.train={records}", "data.eval=null", "train.max_steps=1", "quant=none"]
    found = run_with(python, tmp_path / "log", str(ROOT / "train.py"), *typed, f"hydra.run.dir={tmp_path}/run")
    assert found.returncode == 0, found.stderr
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["hardware"]["gpus"] == []
    assert [call["call"] for call in calls(tmp_path / "log")] == ["init_distributed(gloo)"]
    planned = run_with(python, tmp_path / "log", str(ROOT / "train.py"), "mode=plan", "model=tiny")
    assert "memory per GPU" in planned.stdout  # there is one for other runs


def test_jobs_and_ranks_of_a_sweep_are_forks_that_can_use_the_gpu(
    python: WarmPython, records: Path, tmp_path: Path
) -> None:
    folder, log = tmp_path / "sweep", tmp_path / "log"
    done = run_with(
        python, log, str(ROOT / "train.py"), "-m", *SHORT, f"data.train={records}", "lora.r=2,4", "train.max_steps=2", "hydra.launcher.jobs=2",
        f"hydra.sweep.dir={folder}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "spawned" not in done.stdout + done.stderr
    found = calls(log)
    assert {call["call"] for call in found} >= {"_cuda_init", "init_distributed(cpu:gloo,cuda:nccl)"}
    assert not [call for call in found if call["call"] == "fork"], "a process forked that had touched the driver"
    touched = {call["pid"] for call in found if str(call["call"]).startswith("_cuda")}
    assert touched == {call["pid"] for call in found if "init_distributed" in str(call["call"])}, (
        "only ranks made such calls"
    )
    assert len(touched) == 2


def test_a_run_without_quantization_resumes_with_weights_in_main_memory(
    python: WarmPython, records: Path, tmp_path: Path
) -> None:
    """With ZeRO 0 to 2, weights are in main memory until DeepSpeed moves the model."""
    folder, log = tmp_path / "run", tmp_path / "log"
    first = run_with(python, log, str(ROOT / "train.py"), *_stage1(records, folder))
    assert first.returncode == 0, first.stderr
    second = run_with(python, log, str(ROOT / "train.py"), f"resume={folder}", "train.max_steps=4")
    assert second.returncode == 0, second.stderr
    assert "resuming from" in second.stdout
    assert _steps(folder) == [1, 2, 3, 4]
    assert "ranks are spawned" not in first.stderr + second.stderr
    assert len(_touched(log)) == 2, "one call per rank"


def test_without_nvml_ranks_are_spawned(records: Path, tmp_path: Path) -> None:
    """The start method has no effect on what ranks load. Here every process is a new interpreter."""
    folder, log = tmp_path / "run", tmp_path / "log"
    done = run_script("train.py", *_stage1(records, folder), **environment(log), PRETEND_CUDA_NVML="0")
    assert done.returncode == 0, done.stderr
    assert _steps(folder) == [1, 2]
    assert "ranks are spawned" in done.stderr
    assert len(_touched(log)) == 1, "one call per rank"


def _stage1(records: Path, folder: Path) -> list[str]:
    steps = ["train.max_steps=2", "train.save_every=1"]
    return [*SHORT, f"data.train={records}", "zero=stage1", *steps, f"hydra.run.dir={folder}"]


def _steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _touched(log: Path) -> set[object]:
    """The processes that have initialised CUDA."""
    return {call["pid"] for call in calls(log) if str(call["call"]).startswith("_cuda_init")}


DRIVER = """
#include <unistd.h>

static int process = 0;

int cuInit(unsigned flags) { /* 3: CUDA_ERROR_NOT_INITIALIZED, as in the fork of a process that has initialised the driver */
    if (process == 0) process = getpid();
    return process == getpid() ? 0 : 3;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return process == getpid() ? 0 : 3;
}
"""
LOADS = "import ctypes, os; ctypes.CDLL(os.environ['DRIVER'])"
INITIALISES = f"{LOADS}.cuInit(0)"


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """A library that replaces CUDA's driver."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    made = tmp_path / "libcuda.so.1"
    command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{made.name}", "-x", "c", "-", "-o", str(made)]
    subprocess.run(command, input=DRIVER, text=True, check=True)
    return made


PRELOADS = {
    "raises": ("raise KeyError('x')", "warmed: KeyError: 'x'"),
    "is missing": ("import nosuch", "warmed: ModuleNotFoundError: No module named 'nosuch'"),
    "exits": ("import sys; sys.exit(3)", "warmed: SystemExit: 3"),
    "dies": ("import os; os._exit(3)", "ended while importing hydraft.sweep.preload, warmed"),
    "touches": ("import torch; torch.cuda.init()", fork_server.TOUCHED),
    "loads it": (LOADS, None),
    "touches it without torch": (INITIALISES, f"{fork_server.TOUCHED}, on importing warmed"),
    "counts": ("import torch; torch._C._cuda_getDeviceCount()", fork_server.TOUCHED),
    "is clean": ("import torch; torch.cuda.is_available()", None),
}


@pytest.mark.parametrize("kind", PRELOADS)
def test_jobs_are_spawned_and_the_reason_is_printed_if_a_preload_prevents_forks(
    kind: str, python: WarmPython, driver: Path, tmp_path: Path
) -> None:
    code, reason = PRELOADS[kind]
    (tmp_path / "warmed.py").write_text(code)
    (tmp_path / "app.py").write_text(JOB)
    options = ["-m", "hydra/launcher=pool", "hydra.launcher.preload=[warmed]", "+a=1,2"]
    done = run_with(python, tmp_path / "log", "app.py", *options, folder=tmp_path, DRIVER=str(driver))
    assert done.returncode == 0, done.stderr
    output = done.stdout + done.stderr
    assert output.count("Jobs are spawned") == (reason is not None), output
    assert reason is None or reason in output, output
    for log in (tmp_path / "multirun").rglob("job.log"):
        assert log.read_text() == ("forked\n" if reason is None else "spawned\n")


RANK = """
import os, sys, torch
from hydraft.launch.local import rank
torch.cuda.init()
if os.fork() == 0:
    os.environ.update(RANK="0", DS_ACCELERATOR="cuda")
    rank.enter(sys.argv[1], sys.argv[1], None, {})
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_rank_that_cannot_use_its_gpu_fails(python: WarmPython, tmp_path: Path) -> None:
    done = run_with(python, tmp_path / "log", "-c", RANK, str(tmp_path))
    assert done.returncode == 1
    cause = read_failures(tmp_path)[0].failure.cause
    assert cause == f"RuntimeError: this rank is a fork that cannot use a GPU: {fork_server.TOUCHED}"


def test_a_driver_call_outside_of_torch_is_detected_in_a_fork(driver: Path) -> None:
    steps = (
        "import ctypes, sys; from hydraft.launch.local import fork_server",
        "print(fork_server.forks_without_gpu())",
        "library = ctypes.CDLL(sys.argv[1])",  # loaded, but not initialised
        "print(fork_server.forks_without_gpu())",
        "library.cuInit(0)",
        "print(fork_server.forks_without_gpu())",
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(steps), str(driver)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["None", "None", fork_server.TOUCHED], done.stderr
