"""Each kind of optimizer under ZeRO on two ranks steps as the library's own does on whole tensors, and resumes under another stage."""

import pytest

from conftest import on_ranks

CASES = (
    "muon:0:0", "muon:1:3", "muon:2:3", "muon:3:2", "lion:2:3", "lion:3:0", "adamw_8bit:2:2", "adamw_8bit:3:3", "adamw_8bit:0:2", "adafactor:0:0",
)  # fmt: skip
BITS8 = 0.05
"""Of how far the weights move: 8-bit moments of other blocks are rounded otherwise."""

BF16 = 0.02
"""The same: a norm that is rounded otherwise changes the last bit of gradients, and Muon's update of them in bf16 by more."""


@pytest.fixture(scope="module")
def found() -> dict[str, list[float]]:
    """By case: distances as shares of how far the weights have moved."""
    made: dict[str, list[float]] = on_ranks("tests/support/optimizer_rank.py", list(CASES), 2)
    return made


@pytest.mark.parametrize("case", CASES)
def test_sharded_steps_are_those_on_whole_tensors_and_so_are_resumed_ones(
    case: str, found: dict[str, list[float]]
) -> None:
    from_library, from_unbroken = found[case]
    kind, first, second = case.split(":")
    rounded = {"adamw_8bit": BITS8 * (first != "0"), "muon": BF16}.get(kind, 0)
    assert from_library <= max(1e-6, rounded)
    assert from_unbroken <= (BITS8 if kind == "adamw_8bit" and first != second else 1e-6)
