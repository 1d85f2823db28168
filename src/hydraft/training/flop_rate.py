"""Operations a second of training on GPUs, and their share of what the cards can do: model FLOPs utilization (MFU).

MFU: Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B. The operations are the plan's (``plan/flops.py``), for the mean lengths and
the share of trained tokens of the data set.
"""

from dataclasses import dataclass

import torch

from hydraft.config.choices import Precision
from hydraft.config.objective import ObjectiveKind
from hydraft.config.schema import Config
from hydraft.data.encoded import Encoded
from hydraft.data.labels import IGNORE
from hydraft.plan.flops import Tokens, operations
from hydraft.plan.parameters import trained_in
from hydraft.plan.peak_rate import peak_rate
from hydraft.plan.plan import known_layout

SAMPLE = 256
"""Examples of which the trained tokens are counted."""

RATE, SHARE, EACH = "tflops_per_gpu", "mfu", "flops_per_token"
"""Names in metrics.jsonl and result.json."""


@dataclass(frozen=True)
class FlopRate:
    """Makes the values of a speed."""

    per_token: float | None = None
    """Operations of the forward and the backward pass; None if they are not known."""
    ranks: int = 1
    card: str | None = None
    """Name of the GPU; None on a CPU."""
    half: bool = True
    """Whether the run computes in 16 bits; the peak of a card is only known for these."""

    def values(self, speed: float) -> dict[str, float]:
        """``speed``: tokens a second of all ranks. Returns TFLOP/s of a GPU, and its share of the card's peak if that is known."""
        if self.per_token is None or self.card is None:
            return {}
        rate, peak = speed * self.per_token / self.ranks, peak_rate(self.card) if self.half else None
        return {RATE: round(rate / 1e12, 2), **({} if peak is None else {SHARE: round(rate / peak, 4)})}

    def result(self, speed: float) -> dict[str, float]:
        """The values of result.json."""
        return {**({} if self.per_token is None else {EACH: round(self.per_token)}), **self.values(speed)}


def of(config: Config, data: Encoded, device: torch.device) -> FlopRate:
    """The operations of supervised fine-tuning of an architecture with a ``Family``; the objectives of pairs are not counted."""
    layout, _ = known_layout(config)
    if layout is None or config.objective.kind is not ObjectiveKind.sft or not len(data):
        return FlopRate()
    lengths = data.lengths
    count, squares = sum(lengths), sum(length**2 for length in lengths)
    sample = range(0, len(data), max(1, len(data) // SAMPLE))
    labels = [label for index in sample for label in data[index]["labels"]]
    share = sum(label != IGNORE for label in labels) / max(1, len(labels))
    each = operations(config, layout, trained_in(layout, config), Tokens(1, share, squares / max(1, count)))
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return FlopRate(each, config.world_size, card, config.train.precision is not Precision.fp32)
