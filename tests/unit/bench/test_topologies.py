"""The tables of topologies on a machine with one GPU: cells that need more are skipped, and the device is named."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import equivalence, resume
from bench.equivalence import Curve, measured_on, too_few_gpus
from hydraft.config.schema import Config
from hydraft.system import hardware
from hydraft.system.hardware import Gpu, Hardware

ONE = Hardware((Gpu("NVIDIA H100 80GB HBM3", 81559 << 20, 9.0),), cpus=16, memory=128 << 30)
NONE = Hardware(cpus=2, memory=16 << 30)


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: ONE)


def test_ranks_share_a_cpu_but_not_a_gpu() -> None:
    assert too_few_gpus(4, NONE) is None
    assert too_few_gpus(1, ONE) is None
    assert too_few_gpus(2, ONE) == "needs 2 GPUs, 1 here"
    assert measured_on(NONE) == "Measured on the CPU."
    assert "NVIDIA H100" in measured_on(ONE)


@pytest.mark.usefixtures("one_gpu")
def test_equivalence_skips_cells_that_need_more_gpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clusters = []

    def train(overrides: list[str], folder: Path) -> Curve:
        clusters.append(next(word for word in overrides if word.startswith("cluster=")))
        return Curve([1.0] * equivalence.STEPS, [1.0] * equivalence.STEPS, {"w": torch.ones(2)})

    monkeypatch.setattr(equivalence, "train", train)
    monkeypatch.setattr(sys, "argv", ["equivalence.py"])
    assert equivalence.main() == 0
    assert set(clusters) == {"cluster=1x1"}
    lines = capsys.readouterr().out.splitlines()
    cells = len(equivalence.STAGES) * len(equivalence.QUANTS)
    assert sum("skipped: needs 2 GPUs, 1 here" in line for line in lines) == cells == len(clusters)
    assert lines[-1] == measured_on(ONE)


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Record the configs of all runs of the matrix, none of which trains; each writes an adapter with other values."""
    from safetensors.torch import save_file

    configs: list[Config] = []

    def train(config: Config, folder: Path) -> None:
        (folder / "adapter").mkdir(parents=True, exist_ok=True)
        save_file({"w": torch.full((2,), 1e-8 * len(configs))}, folder / "adapter/adapter_model.safetensors")
        (folder / "metrics.jsonl").write_text('{"loss": 1.0}\n')
        configs.append(config)

    def cut(folder: Path, target: Path, step: int) -> Path:
        target.mkdir(parents=True)
        return target

    monkeypatch.setattr(resume, "train", train)
    monkeypatch.setattr(resume, "cut", cut)
    monkeypatch.setattr(resume, "differs", lambda *_: "weights")
    return configs


def matrix(folder: Path, ranks: tuple[int, ...]) -> bool:
    return resume.matrix([resume.Cell("fp32", "nf4", "stage1", count) for count in ranks], folder)


@pytest.mark.usefixtures("one_gpu")
def test_resume_skips_cells_that_need_more_gpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    configs = recorded(monkeypatch)
    assert matrix(tmp_path, (1, 2, 4)), "bits may differ on a GPU, within the tolerance"
    assert {config.cluster.ranks_per_node for config in configs} == {1}
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "stage1" in line)
    assert row.count("skipped: needs") == 2
    assert "within " in row
    assert lines[-1] == measured_on(ONE)


def test_on_a_cpu_any_difference_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    configs = recorded(monkeypatch)
    monkeypatch.setattr(hardware, "detect", lambda: NONE)
    assert not matrix(tmp_path, (1, 2))
    assert {config.cluster.ranks_per_node for config in configs} == {1, 2}
    assert configs[0].cluster.ranks_per_node == resume.WRITTEN[1]
    out = capsys.readouterr().out
    assert out.count("weights DIFFER") == 2
    assert "skipped" not in out


@pytest.mark.usefixtures("one_gpu")
def test_killing_a_rank_of_two_needs_two_gpus(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="needs 2 GPUs, 1 here"):
        resume.kill(3, tmp_path)


def test_on_a_gpu_differences_must_be_within_the_tolerance(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: ONE)
    recorded(monkeypatch)
    zero: dict[str, Any] = {"fp32": 0.0, "bf16": 0.0}
    monkeypatch.setattr(resume, "TOLERANCE", zero)
    assert not matrix(tmp_path, (1,))
