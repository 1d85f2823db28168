"""The variants of LoRA: one entry each, read by the rules, the plan, the adapter and the checkpoint alike. No torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePath
from typing import Any

from hydraft.errors import ConfigError


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

    @property
    def starts_as_base(self) -> bool:
        """Whether a new adapter changes no bit of the model's outputs: its update is zero, and nothing is scaled."""
        return not self.magnitude and not self.changes_base


VARIANTS = {
    LoraMethod.lora: Variant(),
    LoraMethod.rslora: Variant({"use_rslora": True}),  # alpha / sqrt(r), arXiv:2312.03732
    LoraMethod.dora: Variant({"use_dora": True}, magnitude=True, reads_base=True),  # arXiv:2402.09353
    # Principal singular vectors and values, arXiv:2404.02948.
    LoraMethod.pissa: Variant({"init_lora_weights": "pissa"}, changes_base=True),
}
"""By ``lora.method``; ``none`` is full fine-tuning and has no entry."""


ALL_LINEAR = "all-linear"
"""All linear layers except the language-model head."""

TARGETS = "all-linear, a list of layer names, or a regular expression for whole names"
"""What ``lora.target_modules`` may be, in words that follow "must be"."""


def is_targets(value: Any) -> bool:
    """Whether ``value`` can be ``lora.target_modules``."""
    if isinstance(value, str):
        try:
            re.compile(value)
        except re.error:
            return False
        return bool(value)
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) and name for name in value)


def as_targets(value: list[str] | str | None) -> list[str] | str:
    """``lora.target_modules`` as names, or as a regular expression; a bare word is a name (in peft it would match nothing).

    Raises:
        ConfigError: it is null.
    """
    if value is None:
        raise ConfigError(f"lora.target_modules=null: must be {TARGETS}; for full fine-tuning use lora=none")
    if not isinstance(value, str):
        return value
    return [value] if re.fullmatch(r"[\w-]+(?:\.[\w-]+)*", value) else value


def has_head(targets: list[str] | str) -> bool:
    """Whether ``as_targets`` includes the language-model head."""
    if isinstance(targets, str):
        return bool(re.fullmatch(targets, "lm_head"))
    return any(target.rpartition(".")[2] == "lm_head" for target in targets)


def start_name(start: str) -> str:
    """A short name for ``lora.start`` without this machine's folders: the run, its checkpoint, or the name on the hub."""
    if hub := re.search(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{7})", start):
        return f"{hub[1]}/{hub[2]}@{hub[3]}"
    parts = list(PurePath(start).parts)
    if parts[-1:] == ["adapter"]:
        parts.pop()
    for root in ("outputs", "multirun"):
        if root in parts[:-1]:
            return "/".join(parts[len(parts) - 1 - parts[-2::-1].index(root) :])
    kept = 3 if parts[-2:-1] == ["checkpoints"] else 1
    return "/".join(parts[-kept:])
