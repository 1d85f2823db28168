"""How far the results of two runs are apart, and the bounds of their precision. Torch is imported when weights are read."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

TOLERANCE = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 5e-2}
"""Largest accepted relative difference of the loss and of the gradient norm of a step. Those of fp32 and bf16 are the ones that the
tests hold every topology to; fp16 has three more bits than bf16, and its loss scale may skip another step."""

WEIGHTS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Largest accepted difference of the trained weights, as a share of how far AdamW can have moved them. It is measured as at most 3e-6 in
fp32 and 3e-2 in bf16; weights that were trained otherwise differ by about their whole movement, 0.6."""


MARGIN = 3
"""How many times the difference of the control is accepted."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """The steps of a run."""

    losses: list[float]
    grad_norms: list[float]
    moved: float
    """The sum of the learning rates: about the furthest that AdamW moves an element (its ratio of moments is at most about 1)."""
    weights: list[Path]
    """Files of the trained adapter or model."""


@dataclasses.dataclass(frozen=True)
class Apart:
    """How far two runs are apart."""

    loss: float
    """The largest relative difference of a step."""
    grad_norm: float
    """The same of the gradient norm."""
    weights: float
    """The root mean square difference of the trained weights, as a share of ``Curve.moved``."""
    largest: float
    """The largest difference of an element."""

    def within(self, precision: str, control: "Apart | None" = None) -> dict[str, tuple[float, float]]:
        """By measure: the difference and its bound: that of the precision, or ``MARGIN`` times the difference of a ``control``."""
        bounds = {"loss": TOLERANCE, "gradient norm": TOLERANCE, "trained weights": WEIGHTS}
        rounding = (0.0, 0.0, 0.0) if control is None else (control.loss, control.grad_norm, control.weights)
        found = (self.loss, self.grad_norm, self.weights)
        return {
            name: (value, max(bound[precision], MARGIN * alone))
            for (name, bound), value, alone in zip(bounds.items(), found, rounding, strict=True)
        }


def read(folder: Path) -> Curve:
    """The steps of the run in ``folder``, which logged each of them."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    trained = next(part for part in (folder / "adapter", folder / "model") if part.is_dir())
    return Curve(
        [float(line["loss"]) for line in steps],
        [_number(line.get("grad_norm")) for line in steps],
        sum(float(line["learning_rate"]) for line in steps),
        sorted(trained.glob("*.safetensors")),
    )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def relative(ours: float, theirs: float) -> float:
    """The difference of two numbers relative to ``theirs``; infinite if only one is finite (a step of fp16 may overflow in both)."""
    if ours == theirs or (math.isnan(ours) and math.isnan(theirs)):
        return 0.0
    found = abs(ours - theirs) / abs(theirs) if theirs else math.inf
    return found if math.isfinite(found) else math.inf


def worst(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest relative difference of two curves of the same length."""
    return max(relative(one, other) for one, other in zip(ours, theirs, strict=True))


def exceeded(within: dict[str, tuple[float, float]]) -> list[str]:
    """The measures that are out of their bounds."""
    return [name for name, (value, bound) in within.items() if not value <= bound]


def apart(tested: Curve, reference: Curve) -> Apart:
    """How far a run is from its reference."""
    largest, squares, count = 0.0, 0.0, 0
    for difference in _differences(tested.weights, reference.weights):
        found = float(difference.max())
        largest = math.inf if math.isnan(found) else max(largest, found)  # max() would pass a NaN over
        squares += float(difference.double().pow(2).sum())
        count += difference.numel()
    share = math.sqrt(squares / count) / reference.moved
    return Apart(
        worst(tested.losses, reference.losses),
        worst(tested.grad_norms, reference.grad_norms),
        share if math.isfinite(share) else math.inf,
        largest,
    )


def _differences(ours: list[Path], theirs: list[Path]) -> Iterator[Any]:
    """The absolute differences of each tensor, in fp32. One unit in the last place of its stored type is not counted.

    Two weights that are equal but for rounding are stored as neighbours if they are on either side of a bound between them.
    """
    import torch
    from safetensors import safe_open

    assert [file.name for file in ours] == [file.name for file in theirs]
    for one, other in zip(ours, theirs, strict=True):
        with safe_open(one, framework="pt") as left, safe_open(other, framework="pt") as right:
            names = sorted(right.keys())
            assert sorted(left.keys()) == names
            for name in names:
                a, b = left.get_tensor(name), right.get_tensor(name)
                place = b.float().abs() * torch.finfo(b.dtype).eps
                yield ((a.float() - b.float()).abs() - place).clamp(min=0)
