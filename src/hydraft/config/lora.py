"""The variants of LoRA: one entry each, read by the rules, the plan, the adapter and the checkpoint alike. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class LoraMethod(Enum):
    none = "none"
    lora = "lora"
    rslora = "rslora"
    dora = "dora"
    pissa = "pissa"


@dataclass(frozen=True)
class Variant:
    """What distinguishes a variant from LoRA (arXiv:2106.09685)."""

    peft: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``peft.LoraConfig`` beyond rank, alpha, dropout and targets."""
    magnitude: bool = False
    """Whether a magnitude for each output feature is trained as well, which scales the layer's output."""
    changes_base: bool = False
    """Whether the base weights change when the adapter is initialised. They must then be neither quantised nor sharded, and the
    adapter is saved as plain LoRA of twice the rank, which fits the original base."""
    reads_base: bool = False
    """Whether a pass reads the base weight itself; a quantised one must then not be sharded."""


VARIANTS = {
    LoraMethod.lora: Variant(),
    LoraMethod.rslora: Variant({"use_rslora": True}),  # alpha / sqrt(r), arXiv:2312.03732
    LoraMethod.dora: Variant({"use_dora": True}, magnitude=True, reads_base=True),  # arXiv:2402.09353
    # Principal singular vectors and values, arXiv:2404.02948.
    LoraMethod.pissa: Variant({"init_lora_weights": "pissa"}, changes_base=True),
}
"""By ``lora.method``; ``none`` is full fine-tuning and has no entry."""
