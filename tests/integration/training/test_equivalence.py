"""ZeRO stage, ranks and offloading change where numbers are stored, not their values."""

from pathlib import Path

import pytest

from bench.equivalence import TOLERANCE, TOPOLOGIES, Curve, apart, overrides_for, train, write_data

_references: dict[str, Curve] = {}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


STEPS = "train.max_steps=4"
QUANTISED = {
    (stage, ranks): "none" if number // 2 % 2 == ranks % 2 else "nf4"
    for number, (stage, ranks) in enumerate(TOPOLOGIES)
    if (stage, ranks) != ("stage0", 1)
}
"""The quantisation of each topology but the reference: each stage and each number of ranks has both. ``bench/equivalence.py`` has the
other half of the matrix."""


def reference(quant: str, data: Path, folder: Path) -> Curve:
    """One rank under stage 0, which is trained once."""
    if quant not in _references:
        _references[quant] = train([*overrides_for("stage0", 1, quant, "fp32", data), STEPS], folder / "reference")
    return _references[quant]


@pytest.mark.parametrize(("stage", "ranks"), QUANTISED)
def test_every_topology_trains_the_same(stage: str, ranks: int, data: Path, tmp_path: Path) -> None:
    quant = QUANTISED[stage, ranks]
    curve = train([*overrides_for(stage, ranks, quant, "fp32", data), STEPS], tmp_path / "run")
    assert max(apart(curve, reference(quant, data, tmp_path))) <= TOLERANCE["fp32"]


SHARDED = {  # by kind and topology: the tolerance
    (
        "muon",
        "stage2",
        2,
    ): 2e-4,  # its update is computed in bf16: a last bit of a gradient changes some of its elements by 1/256
    ("muon", "stage3", 2): 2e-4,
    ("lion", "stage3", 2): TOLERANCE["fp32"],
    ("adafactor", "stage0", 2): TOLERANCE["fp32"],
}


@pytest.mark.parametrize(("optimizer", "stage", "ranks"), SHARDED)
def test_every_optimizer_trains_the_same_when_it_is_sharded(
    optimizer: str, stage: str, ranks: int, data: Path, tmp_path: Path
) -> None:
    if optimizer not in _references:
        plain = overrides_for("stage0", 1, "none", "fp32", data, optimizer)
        _references[optimizer] = train([*plain, STEPS], tmp_path / "reference")
    curve = train([*overrides_for(stage, ranks, "none", "fp32", data, optimizer), STEPS], tmp_path / "run")
    assert max(apart(curve, _references[optimizer])) <= SHARDED[optimizer, stage, ranks]


def test_the_comparison_can_fail(data: Path, tmp_path: Path) -> None:
    """Another learning rate is out of tolerance."""
    other = [*overrides_for("stage2", 1, "none", "fp32", data), STEPS, "train.learning_rate=1.01e-3"]
    assert max(apart(train(other, tmp_path / "other"), reference("none", data, tmp_path))) > TOLERANCE["fp32"]
