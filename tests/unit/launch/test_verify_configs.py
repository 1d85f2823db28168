"""mode=verify of train.py: which two configs are compared, what is not covered, and when they are apart."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench.equivalence import compose_run
from hydraft.config.choices import Batching, Kernels, Launcher, Loss, OnDivergence, Precision
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.launch.verify import configs, curves
from hydraft.launch.verify.curves import Apart, Curve
from hydraft.launch.verify.run import verify
from hydraft.system.hardware import Gpu, Hardware

CPU = Hardware(cpus=2, memory=16 << 30)
GPUS = Hardware((Gpu("NVIDIA H100 80GB HBM3", 81559 << 20, 9.0),) * 3, cpus=16, memory=128 << 30)


def config(*overrides: str) -> Config:
    return compose_run(["cluster=1x1", *overrides], CPU)


def on(nodes: int, ranks: int, accumulated: int, **cluster: object) -> Config:
    plain = config(f"train.gradient_accumulation_steps={accumulated}")
    return dataclasses.replace(
        plain, cluster=dataclasses.replace(plain.cluster, nodes=nodes, ranks_per_node=ranks, **cluster)
    )


def test_ranks_that_are_not_here_become_accumulation() -> None:
    for machine, ranks in ((CPU, [8, 4, 2, 1]), (GPUS, [2, 1])):
        found = list(configs.here(on(2, 4, 1), machine))
        assert [one.cluster.ranks_per_node for one in found] == ranks
        assert {one.global_batch_size for one in found} == {on(2, 4, 1).global_batch_size}
        assert not any(configs.elsewhere(one) for one in found)
    assert [one.cluster.ranks_per_node for one in configs.here(on(1, 4, 3), GPUS)] == [3, 2, 1]


def test_what_this_machine_has_not_is_listed() -> None:
    requested = on(2, 4, 1, launcher=Launcher.slurm)
    tested = next(configs.here(requested, GPUS))
    assert configs.not_covered(requested, tested, GPUS) == [
        "the network between 2 machines: all ranks run on this one",
        "cluster.launcher=slurm: the job and its script; the ranks start on this machine",
        "8 ranks: here 2, with accumulation so that the global batch is the same (this machine has 3 GPUs)",
    ]
    assert any("neither CUDA's kernels nor NCCL" in line for line in configs.not_covered(requested, tested, CPU))
    compiled = config("train.compile=true")
    (line,) = configs.not_covered(compiled, compiled, CPU)
    assert line.startswith("train.compile=true")
    here = on(1, 2, 1)
    assert configs.not_covered(here, here, CPU) == []


def test_nothing_that_hides_a_difference_is_left() -> None:
    given = config(
        "lora.dropout=0.1", "train.on_divergence=rewind", "train.auto_micro_batch=true", "train.pass_over=[2]", "train.warmup_ratio=0.1",
        "cluster.max_restarts=2", "train.eval_every=3", "tracker=tensorboard",
    )  # fmt: skip
    made = next(configs.here(configs.comparable(given), CPU))
    assert (
        made.lora.dropout == 0
        and made.train.warmup_ratio == 0
        and made.optimizer.eps == 1e-5
        and made.train.pass_over == []
    )
    assert (
        made.train.on_divergence is OnDivergence.stop
        and not made.train.auto_micro_batch
        and made.cluster.max_restarts == 0
    )
    assert made.data.eval is None and made.train.eval_every is None and made.train.max_steps == configs.STEPS
    assert [line.partition("=")[0] for line in configs.held_fixed(given)] == [
        "lora.dropout", "optimizer.eps", "train.warmup_ratio", "train.pass_over",
    ]  # fmt: skip
    assert configs.comparable(config("data.eval=5%")).data.eval == "5%"  # it decides which records are trained


def test_the_reference_is_plain() -> None:
    given = config(
        "zero=stage3_offload",
        "data.packing=true",
        "kernels.loss=chunked",
        "cluster=1x2",
        "train.gradient_accumulation_steps=3",
    )
    plain = configs.padded(configs.reference(given))
    assert plain.zero.stage == 0 and plain.zero.offload_param.value == plain.zero.offload_optimizer.value == "none"
    assert plain.world_size == 1 and plain.global_batch_size == given.global_batch_size
    assert plain.kernels.kind is Kernels.torch and plain.kernels.loss is Loss.whole
    assert plain.data.batching is Batching.padded and plain.data.packing  # the same bins
    assert configs.differs(given, plain).startswith(
        "ZeRO stage 3 and 0, optimizer on cpu and none, weights on cpu and none, ranks 2 and 1"
    )
    half = dataclasses.replace(given, train=dataclasses.replace(given.train, precision=Precision.fp16))
    assert configs.reference(half).zero.stage == 1
    again = configs.control(plain)
    assert again is not None and again.global_batch_size == plain.global_batch_size
    assert again.train.micro_batch_size < plain.train.micro_batch_size
    assert configs.control(config("train.micro_batch_size=1")) is None


def curve(folder: Path, losses: list[float], weights: torch.Tensor) -> Curve:
    folder.mkdir()
    save_file({"w": weights}, folder / "adapter_model.safetensors")
    return Curve(losses, [2 * loss for loss in losses], 0.01, [folder / "adapter_model.safetensors"])


def test_how_far_two_runs_are_apart(tmp_path: Path) -> None:
    start = torch.linspace(-1, 1, 4)
    plain = curve(tmp_path / "a", [2.0, 1.0], start)
    other = curve(tmp_path / "b", [2.0, 1.1], start + torch.tensor([0.0, 0.0, 0.0, 0.003]))
    found = curves.apart(other, plain)
    assert found.loss == pytest.approx(0.1) and found.grad_norm == pytest.approx(0.1)
    assert found.largest == pytest.approx(0.003, rel=1e-3) and found.weights == pytest.approx(0.15, rel=1e-3)
    assert curves.apart(plain, plain) == Apart(0, 0, 0, 0)
    assert curves.exceeded(found.within("bf16")) == ["loss", "gradient norm", "trained weights"]
    control = Apart(0.04, 0.04, 0.06, 0.0)
    assert curves.exceeded(found.within("bf16", control)) == []
    broken = curves.apart(curve(tmp_path / "c", [math.nan, 1.0], torch.full((4,), math.nan)), plain)
    assert curves.exceeded(broken.within("bf16", control)) == ["loss", "gradient norm", "trained weights"]


def test_neighbours_of_a_stored_type_are_equal(tmp_path: Path) -> None:
    stored = torch.full((4,), 1.0, dtype=torch.bfloat16)
    neighbour = stored + torch.finfo(torch.bfloat16).eps
    assert not torch.equal(stored, neighbour)
    assert curves.apart(curve(tmp_path / "a", [1.0], neighbour), curve(tmp_path / "b", [1.0], stored)).largest == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("resume", "last", "mode=verify trains two new runs"), ("gpu", "24GiB", "is for mode=plan")],
)
def test_what_verify_has_no_use_for(name: str, value: str, message: str, tmp_path: Path) -> None:
    given = config()
    if name == "resume":
        given = dataclasses.replace(given, resume=value)
    else:
        given = dataclasses.replace(given, cluster=dataclasses.replace(given.cluster, gpu_memory=value))
    with pytest.raises(ConfigError, match=message):
        verify(given, tmp_path)
