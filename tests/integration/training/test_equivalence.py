"""ZeRO stage, ranks and offloading change where numbers are stored, not their values."""

from pathlib import Path

import pytest

from bench.equivalence import QUANTS, RANKS, STAGES, TOLERANCE, Curve, apart, overrides_for, train, write_data

_references: dict[str, Curve] = {}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


TOPOLOGIES = [(stage, ranks) for stage in STAGES for ranks in RANKS if (stage, ranks) != ("stage0", 1)]
"""All but the reference."""


@pytest.mark.parametrize(("stage", "ranks"), TOPOLOGIES)
@pytest.mark.parametrize("quant", QUANTS)
def test_every_topology_trains_the_same(quant: str, stage: str, ranks: int, data: Path, tmp_path: Path) -> None:
    if quant not in _references:
        _references[quant] = train(overrides_for("stage0", 1, quant, "fp32", data), tmp_path / "reference")
    curve = train(overrides_for(stage, ranks, quant, "fp32", data), tmp_path / "run")
    assert max(apart(curve, _references[quant])) <= TOLERANCE["fp32"]


def test_the_comparison_can_fail(data: Path, tmp_path: Path) -> None:
    """Another learning rate is out of tolerance, and so is weighing micro-batches in place of tokens."""
    reference = train(overrides_for("stage2", 1, "none", "fp32", data), tmp_path / "a")
    other = train([*overrides_for("stage2", 1, "none", "fp32", data), "train.learning_rate=1.01e-3"], tmp_path / "b")
    assert max(apart(other, reference)) > TOLERANCE["fp32"]
