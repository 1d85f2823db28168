"""The lora section, and the variants of LoRA: one entry each, read by the rules, the plan, the adapter and the checkpoint alike. No torch."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePath
from typing import Any

from hydraft.config.bounds import Effect, setting
from hydraft.errors import ConfigError


class LoraMethod(Enum):
    none = "none"
    lora = "lora"
    rslora = "rslora"
    dora = "dora"
    pissa = "pissa"
    olora = "olora"
    eva = "eva"
    loftq = "loftq"
    orthogonal = "orthogonal"
    lora_fa = "lora_fa"
    vera = "vera"


@dataclass(frozen=True)
class Variant:
    """What distinguishes a variant from LoRA (arXiv:2106.09685)."""

    peft: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``peft.LoraConfig`` beyond rank, alpha, dropout and targets."""
    magnitude: bool = False
    """Whether a magnitude for each output feature is trained as well, which scales the layer's output."""
    changes_base: bool = False
    """Whether the adapter starts from a part of each base weight, which is subtracted from it: from the weight itself, or, if that is
    quantised, by a second, frozen adapter. The adapter is saved as plain LoRA of twice the rank, which fits the original base."""
    reads_base: bool = False
    """Whether a pass reads the base weight itself."""
    reads_records: bool = False
    """Whether the first weights come from a forward pass over training records."""
    reads_error: bool = False
    """Whether the first weights are the error of quantising the base."""
    exact: bool = True
    """Whether an update that is zero is zero to the bit before training."""
    frozen_down: bool = False
    """Whether A keeps its first weights, and only B is trained."""
    shared: bool = False
    """Whether all layers share one frozen A and one frozen B, of which each trains two scaling vectors."""

    @property
    def starts_as_base(self) -> bool:
        """Whether a new adapter changes no bit of the model's outputs: its update is zero, and nothing is scaled."""
        return self.exact and not (self.magnitude or self.changes_base or self.reads_error)

    @property
    def alone(self) -> bool:
        """Whether members of a pack cannot have it: they add adapters of trained A and B, drawn at random, to one base."""
        return self.computed or self.frozen_down or self.shared or not self.exact

    @property
    def computed(self) -> bool:
        """Whether the first weights are computed from the base or the records, and not only drawn."""
        return self.changes_base or self.reads_records or self.reads_error


VARIANTS = {
    LoraMethod.lora: Variant(),
    LoraMethod.rslora: Variant({"use_rslora": True}),  # alpha / sqrt(r), arXiv:2312.03732
    LoraMethod.dora: Variant({"use_dora": True}, magnitude=True, reads_base=True),  # arXiv:2402.09353
    # Principal singular vectors and values, arXiv:2404.02948.
    LoraMethod.pissa: Variant({"init_lora_weights": "pissa"}, changes_base=True),
    # The first columns and rows of a QR decomposition, arXiv:2406.01775.
    LoraMethod.olora: Variant({"init_lora_weights": "olora"}, changes_base=True),
    # Principal directions of the layers' inputs, arXiv:2410.07170; every layer keeps the rank lora.r.
    LoraMethod.eva: Variant({"init_lora_weights": "eva"}, reads_records=True),
    # Principal part of what NF4 loses, arXiv:2310.08659; the base is not quantised again.
    LoraMethod.loftq: Variant(reads_error=True),
    # A and B from disjoint rows of an orthogonal matrix, so that B·A is zero up to rounding.
    LoraMethod.orthogonal: Variant({"init_lora_weights": "orthogonal"}, exact=False),
    LoraMethod.lora_fa: Variant(frozen_down=True),  # arXiv:2308.03303
    LoraMethod.vera: Variant(shared=True),  # arXiv:2310.11454
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


EXCLUDED = "a list of layer names, or a regular expression for whole names"
RANKS = "a dict from names of layers to ranks of at least 1, such as {down_proj: 16}"
ALPHAS = "a dict from names of layers to numbers above 0, such as {down_proj: 32}"


def is_excluded(value: Any) -> bool:
    """Whether ``value`` can be ``lora.exclude_modules``."""
    return value == [] or is_targets(value)


def are_layers(value: Any) -> bool:
    """Whether ``value`` can be ``lora.layers``."""
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)


def are_ranks(value: Any) -> bool:
    """Whether ``value`` can be ``lora.rank_pattern``."""
    return _is_pattern(value) and all(type(rank) is int and rank >= 1 for rank in value.values())


def are_alphas(value: Any) -> bool:
    """Whether ``value`` can be ``lora.alpha_pattern``."""
    return _is_pattern(value) and all(isinstance(alpha, int | float) and alpha > 0 for alpha in value.values())


def _is_pattern(value: Any) -> bool:
    return isinstance(value, dict) and all(is_targets(name) for name in value)


def pattern(names: Iterable[str], layer: str) -> str | None:
    """The first of ``names`` that is a layer's, as in peft's ``get_pattern_key``."""
    return next((name for name in names if re.fullmatch(rf"(.*\.)?({name})", layer)), None)


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


@dataclass
class LoraConfig:
    """The LoRA adapter, or full fine-tuning."""

    method: LoraMethod = LoraMethod.lora
    """Variant of LoRA. ``none``: train every weight (full fine-tuning)."""
    r: int = setting(
        8, at_least=1, refusal="the rank of a LoRA update is at least 1; for full fine-tuning use lora=none"
    )
    """Rank of the update B·A."""
    alpha: float = setting(16, above=0)
    """The update is scaled by alpha / r; with rslora by alpha / sqrt(r)."""
    dropout: float = setting(0.0, at_least=0, below=1)
    """Dropout probability of the adapter's input in training."""
    bias: str = setting("none", one_of=("none", "all", "lora_only"))
    """Which biases are trained."""
    target_modules: Any = setting(factory=lambda: [ALL_LINEAR], valid=is_targets, allowed=TARGETS)
    """Names of the linear layers that get an adapter, each with or without the names before it. ``all-linear``: all except the
    language-model head. A text with other characters than those of a name is a regular expression for whole names, as in peft."""
    exclude_modules: Any = setting(factory=list, valid=is_excluded, allowed=EXCLUDED)
    """Layers that get no adapter although ``target_modules`` names them: names or a regular expression, as there."""
    layers: list[int] = setting(factory=list, valid=are_layers, allowed="numbers of decoder layers, from 0")
    """The decoder layers that get an adapter, by their numbers from 0. ``[]``: all of them."""
    rank_pattern: dict[str, int] = setting(factory=dict, valid=are_ranks, allowed=RANKS)
    """Other ranks for some layers, ``{down_proj: 16}``: each name is one of a layer, with or without the names before it, or a regular
    expression for the end of its name, as in peft."""
    alpha_pattern: dict[str, float] = setting(factory=dict, valid=are_alphas, allowed=ALPHAS)
    """Other values of ``alpha`` for some layers, as ``rank_pattern``."""
    modules_to_save: list[str] = setting(factory=list, valid=is_excluded, allowed="a list of names of modules")
    """Modules of which a whole copy is trained and saved with the adapter, such as ``embed_tokens`` and ``lm_head``: embeddings, norms, the
    head, and unquantised linear layers without an adapter. A head that shares its weights with the embedding no longer does."""
    start: str | None = setting(None, effect=Effect.reads)
    """The adapter that training starts from instead of a new one: a run's folder, ``last``, the folder of an adapter in PEFT format, or
    its name on the Hugging Face hub. ``r``, ``alpha``, ``bias``, ``target_modules``, ``method`` and the patterns are its own."""

    @property
    def variant(self) -> Variant:
        """The entry of ``method``; full fine-tuning has the plain one."""
        return VARIANTS.get(self.method, Variant())

    def check_linear(self, embeddings: Collection[str]) -> None:
        """Refuse ``embeddings`` among the layers with an adapter, which only methods have whose A and B are drawn and trained.

        Raises:
            ConfigError: names the first.
        """
        if embeddings and self.variant.alone:
            raise ConfigError(
                f"lora.target_modules: lora={self.method.value} is for linear layers, and {min(embeddings)} is an embedding: leave it out, or "
                "use lora=default"
            )

    def check_rank(self, r: int, rows: int, columns: int) -> None:
        """Refuse a rank ``r`` above that of a weight (rows, columns), if the first weights are parts of it or of its inputs.

        Raises:
            ConfigError: the message has the largest rank.
        """
        most = columns if self.variant.reads_records else min(rows, columns)
        if self.variant.computed and r > most:
            raise ConfigError(
                f"lora.r={r}: lora={self.method.value} computes its first weights, and of a layer with the shape ({rows}, {columns}) "
                f"there are no more than {most}: use lora.r={most} or less"
            )

    @property
    def starts_as_base(self) -> bool:
        """Whether the model's outputs before training are those of its base, to the bit."""
        return self.start is None and self.variant.starts_as_base

    @property
    def on_head(self) -> bool:
        """Whether the language-model head gets an adapter, or a whole copy of it is trained."""
        adapted = has_head(self.targets) and not self.layers and not has_head(self.excluded)
        return adapted or has_head(self.modules_to_save)

    @property
    def excluded(self) -> list[str] | str:
        """``exclude_modules`` as names, or as a regular expression."""
        return as_targets(self.exclude_modules) if self.exclude_modules else []

    @property
    def ranks(self) -> list[int]:
        """Every rank that a layer may have."""
        return [self.r, *self.rank_pattern.values()]

    def rank(self, name: str) -> int:
        """The rank of the adapter on the layer ``name``."""
        return self.rank_pattern.get(str(pattern(self.rank_pattern, name)), self.r)

    @property
    def targets(self) -> list[str] | str:
        """``target_modules`` as names, or as a regular expression."""
        return as_targets(self.target_modules)
