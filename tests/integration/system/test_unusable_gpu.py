"""GPUs that torch cannot use are refused before anything is loaded, with driver, build and what to install."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT, SCALE
from hydraft.errors import ConfigError
from hydraft.system import torch_build
from hydraft.system.hardware import Gpu, Hardware
from hydraft.training import deepspeed_ops
from pretended import GIB, RTX, Device, library

INDEX = "--index-url https://download.pytorch.org/whl/"


def machine(capability: float, driver: str, driver_cuda: str, torch_cuda: str | None) -> Hardware:
    return Hardware((Gpu("a card", 24 * GIB, capability),), 8, driver=driver, driver_cuda=driver_cuda, torch="2.13.0", torch_cuda=torch_cuda)  # fmt: skip


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (machine(9.0, "580.65.06", "13.0", "13.0"), []),
        (machine(9.0, "580.65.06", "13.0", "13.2"), []),  # within a CUDA release, any version runs
        (machine(9.0, "535.1", "12.2", "12.6"), []),
        (machine(8.9, "580.65.06", "13.0", "12.6"), []),
        (machine(12.0, "570.1", "12.8", "12.8"), []),
        (machine(9.0, "550.54.15", "12.4", None), []),  # unknown versions are not refused
        (machine(0.0, "580.65.06", "13.0", "13.0"), []),
        (machine(9.0, "", "", "13.0"), []),
        (
            machine(8.9, "550.54.15", "12.4", "13.0"),
            ["built for CUDA 13.0, which needs a driver from 580 on", "driver 550.54.15 (CUDA 12.4)", f"pip install torch==2.13.0+cu126 {INDEX}cu126 fits this driver"],
        ),
        (
            machine(8.9, "470.1", "11.4", "12.6"),
            ["needs a driver from 525 on", f"install a driver from 580 on, and pip install torch==2.13.0+cu130 {INDEX}cu130"],
        ),
        (machine(9.0, "580.65.06", "13.0", ""), ["is built without CUDA", f"torch==2.13.0+cu130 {INDEX}cu130"]),
        (machine(9.0, "550.54.15", "12.4", ""), ["is built without CUDA", f"torch==2.13.0+cu126 {INDEX}cu126"]),
        (machine(12.0, "580.65.06", "13.0", "12.6"), ["capability 12.0", "no kernels for it", f"{INDEX}cu130"]),
        (machine(12.0, "570.1", "12.8", "12.6"), ["no kernels for it: install a driver from 580 on", f"{INDEX}cu130"]),
        (machine(12.0, "570.1", "12.8", "13.0"), ["needs a driver from 580 on", "install a driver from 580 on, and pip install"]),
        (machine(7.0, "580.65.06", "13.0", "13.0"), ["a card has compute capability 7.0, and it must be 7.5 (Turing) or more"]),
        (machine(6.1, "550.54.15", "12.4", None), ["a card has compute capability 6.1"]),
    ],
)  # fmt: skip
def test_combinations_of_build_and_driver(found: Hardware, expected: list[str]) -> None:
    assert bool(found.unusable) is bool(expected)
    for part in expected:
        assert part in found.unusable


def pretended(folder: Path, built_for: str | None, *cards: Device, driver: str = "580.65.06", cuda: int = 13000) -> dict[str, str]:  # fmt: skip
    """The environment of a command on a machine with ``cards`` and a torch ``built_for`` a CUDA version.

    Importing this torch raises an error, since a refusal must not import it.
    """
    library(folder, *cards, driver=driver, cuda=cuda)
    torch = folder / "torch"
    torch.mkdir()
    (torch / "__init__.py").write_text("raise RuntimeError('torch was imported')\n")
    built = "None" if built_for is None else f"'{built_for}'"
    (torch / "version.py").write_text(
        f"from typing import Optional\n\n__all__ = ['cuda']\n__version__ = '2.13.0+x'\ndebug = False\ncuda: Optional[str] = {built}\nhip: Optional[str] = None\n"
    )
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    paths = [str(folder), str(ROOT / "src")]
    return {**kept, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": os.pathsep.join(paths)}


def command(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120 * SCALE,
        check=False,
    )


def test_a_run_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    environment = pretended(tmp_path, "13.0", RTX, driver="550.54.15", cuda=12040)
    done = command(environment, "train.py", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "the torch 2.13.0 here is built for CUDA 13.0, which needs a driver from 580 on" in done.stderr
    assert "CUDA_VISIBLE_DEVICES= python train.py" in done.stderr
    assert not (tmp_path / "run" / "config.yaml").exists()
    # A plan reports it; help and a preview of the records work without a usable GPU.
    plan = command(environment, "train.py", "mode=plan", "model=llama3")
    assert plan.returncode == 0, plan.stderr
    assert "refused here: the torch 2.13.0 here is built for" in plan.stdout.replace("\n", " ")
    assert command(environment, "train.py", "--help").returncode == 0
    inference = command(environment, "infer.py", "run=x", "prompt=x")
    assert inference.returncode == 2, inference.stderr
    assert inference.stderr.count("\n") == 1 and inference.stderr.rstrip().endswith("device=cpu")


@pytest.mark.parametrize(
    ("cards", "built_for", "expected"),
    [
        ([RTX], None, "the torch 2.13.0 here is built without CUDA"),
        ([dataclasses.replace(RTX, name="Tesla V100", capability=(7, 0))], "13.0", "Tesla V100 has compute capability 7.0"),
        ([RTX, dataclasses.replace(RTX, uuid="GPU-3", handle_code=15)], "13.0", "leave it out: CUDA_VISIBLE_DEVICES=0"),
    ],
)  # fmt: skip
def test_other_gpus_are_refused(cards: list[Device], built_for: str | None, expected: str, tmp_path: Path) -> None:
    done = command(pretended(tmp_path, built_for, *cards), "train.py", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr and done.stderr.count("\n") == 1


def test_the_installed_build_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    started = time.perf_counter()
    version, cuda = torch_build.installed()
    assert time.perf_counter() - started < 0.5 * SCALE
    assert version == torch.__version__.split("+")[0]
    assert cuda == (torch.version.cuda or "")
    with monkeypatch.context() as patch:
        patch.setattr(torch_build, "find_spec", lambda name: None)
        assert torch_build.installed() == ("", None)
    with monkeypatch.context() as patch:
        patch.setenv("HYDRAFT_DRIVER_CHECK", "0")
        assert torch_build.installed() == ("", None)


def test_a_rank_without_a_usable_gpu_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    deepspeed_ops.ready_device()
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")

    def old_driver() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old\n(found version 12040).")

    monkeypatch.setattr(torch.cuda, "init", old_driver)
    with pytest.raises(
        ConfigError,
        match=r"torch .* sees none \(The NVIDIA driver on your system is too old \(found version 12040\)\.\)",
    ):
        deepspeed_ops.ready_device()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"cluster\.ranks_per_node=2: torch sees 1 GPUs"):
        deepspeed_ops.ready_device()


def test_a_run_fails_with_the_reason_before_its_model_is_loaded(tmp_path: Path) -> None:
    """With the first check disabled, so that the installed torch, which is built without CUDA, is used."""
    import torch

    if torch.version.cuda is not None:
        pytest.skip("this torch is built for CUDA")
    library(tmp_path, RTX)
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment |= {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(ROOT / "src"), "HYDRAFT_DRIVER_CHECK": "0"}
    done = command(environment, "train.py", f"hydra.run.dir={tmp_path / 'run'}", "data.eval=null", "train.max_steps=1")
    assert done.returncode == 2, done.stderr
    assert "sees none (Torch not compiled with CUDA enabled)" in done.stderr.splitlines()[-1]
    assert "loading the model" not in done.stdout


def test_deepspeed_gets_free_memory_from_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own function mistakes the name of a MIG slice for a number at each start of stages 1 and 2."""
    import torch
    from deepspeed.accelerator import cuda_accelerator, real_accelerator

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-33333333-c")
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    accelerator = cuda_accelerator.CUDA_Accelerator()
    monkeypatch.setattr(real_accelerator, "ds_accelerator", accelerator)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index=None: (5 * GIB, 10 * GIB))
    with pytest.raises(ValueError, match="invalid literal for int"):
        accelerator._get_nvml_gpu_id(0)
    deepspeed_ops.ready_device()
    assert accelerator.available_memory() == 5 * GIB
    assert accelerator.available_memory(0) == 5 * GIB


@pytest.mark.gpu
def test_torch_uses_gpus_that_are_not_refused() -> None:
    code = (
        "import os\nfrom hydraft.system import hardware\nfrom hydraft.training import deepspeed_ops as ops\nmachine = hardware.detect()\nassert machine.unusable == '', machine.unusable\n"
        "os.environ.update(ops.environment(machine))\nops.ready_device()\nimport torch\n"
        "assert float(torch.ones(8, device='cuda').sum()) == 8\n"
        "from deepspeed.accelerator import get_accelerator\n"
        "assert 0 < get_accelerator().available_memory() <= torch.cuda.mem_get_info()[1]\n"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "LOCAL_WORLD_SIZE": "1"}, check=True)
