"""The backends of ranks with a GPU: tensors in main memory have one too."""

from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from conftest import config_of, run_script
from hydraft.checkpoint import optimizer_state
from hydraft.models import exchange
from hydraft.training import arguments


class Chosen(Exception):
    """Raised instead of creating a process group."""


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The backends that a rank with a GPU requests, with gloo instead of NCCL."""

    def init(dist_backend: str, **rest: Any) -> None:
        raise Chosen(dist_backend)

    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(deepspeed, "init_distributed", init)
        with pytest.raises(Chosen) as chosen:
            arguments.training_arguments(config_of("quant=none"), tmp_path)
    asked = str(chosen.value)
    return "cuda:gloo" if asked == "nccl" else asked.replace("nccl", "gloo")


def load(backend: str, folder: Path) -> torch.nn.Linear:
    """A model in main memory whose saved weights are loaded in a process group of one rank."""
    model = torch.nn.Linear(3, 2)
    save_file(
        {f"param/{name}": torch.ones_like(p) for name, p in model.named_parameters()}, folder / optimizer_state.FILE
    )
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        optimizer_state.load_weights(dict(model.named_parameters()), folder)
        assert exchange.all_gather({"a": 1}) == [{"a": 1}]
        dist.barrier()
    finally:
        dist.destroy_process_group()
    return model


def test_the_backends_of_a_rank_with_a_gpu_load_weights_in_main_memory(backend: str, tmp_path: Path) -> None:
    model = load(backend, tmp_path)
    assert all((p == 1).all() for p in model.parameters())


def test_a_group_with_nccl_only_rejects_them(tmp_path: Path) -> None:
    """The error of torch that the test above would get."""
    with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
        load("cuda:gloo", tmp_path)


@pytest.mark.gpu
def test_weights_are_broadcast_on_the_gpu_and_copied_to_their_device(tmp_path: Path) -> None:
    for number, backend in enumerate(("cuda:nccl", arguments.GPU_BACKENDS)):
        folder = tmp_path / str(number)
        folder.mkdir()
        model = torch.nn.Linear(3, 2)
        save_file(
            {f"param/{name}": torch.ones_like(p) for name, p in model.named_parameters()},
            folder / optimizer_state.FILE,
        )
        dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            optimizer_state.load_weights(dict(model.named_parameters()), folder)
        finally:
            dist.destroy_process_group()
        assert all((p == 1).all() and p.device.type == "cpu" for p in model.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("zero", ["stage0", "stage2", "stage2_offload", "stage3"])
def test_a_run_without_quantisation_resumes_on_the_gpu(zero: str, records: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = run_script(
        "train.py", "quant=none", "data.eval=null", f"data.train={records}", f"zero={zero}", "train.log_every=1",
        "train.max_steps=2", "train.save_every=1", f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    more = run_script("train.py", f"resume={folder}", "train.max_steps=4")
    assert more.returncode == 0, more.stderr
    assert "ranks are spawned" not in first.stderr + more.stderr
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 4


@pytest.mark.gpu
def test_a_sweep_runs_on_the_gpu(records: Path, tmp_path: Path) -> None:
    """Started from the command line: jobs and ranks are forks, and train with 4-bit weights."""
    done = run_script(
        "train.py", "-m", "lora.r=2,4", "data.eval=null", f"data.train={records}", "train.max_steps=2",
        f"hydra.sweep.dir={tmp_path / 'sweep'}", OMP_WAIT_POLICY="PASSIVE",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "spawned" not in done.stdout + done.stderr
