"""An adapter or a model that ``run=`` resolved to, with its base. No torch."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from hydraft.config.choices import Precision, Thinking
from hydraft.config.model import ModelConfig
from hydraft.config.schema import QuantConfig

ADAPTER = "adapter_model.safetensors"


class Kind(Enum):
    adapter = "adapter"
    model = "model"


@dataclass(frozen=True)
class Combined:
    """How an adapter was made of others, by ``export.combine``."""

    method: str
    weights: list[float]
    density: float | None
    """The share of numbers that was kept; None if all were."""
    seed: int | None
    """None if nothing was drawn."""
    sources: "list[Source]"


@dataclass
class Source:
    """An adapter or a model."""

    kind: Kind
    folder: Path
    """The folder of its weights, tokenizer and template."""
    name: str
    """Its name for ``adapter=`` and on a server."""
    model: ModelConfig
    """The base; for ``Kind.model`` the model itself."""
    quant: QuantConfig
    precision: Precision
    """The compute type; ``auto`` for that of the model's config.json."""
    template: str
    """The ``data.template`` of training."""
    max_length: int | None = None
    """The most tokens of a record in training; None if unknown."""
    thinking: Thinking = Thinking.auto
    """Whether the model was trained with thoughts; ``auto`` if unknown: it is then left to the template."""
    seed: int = 42
    """The run's seed, for a base of random weights."""
    origin: ModelConfig | None = None
    """For ``Kind.model``: the model that it was trained from; None if unknown."""
    base_sha256: str | None = None
    """``base_identity.fingerprint`` of the base that the adapter was trained on; None if not recorded."""
    base_name: str = ""
    """The base's name in training."""
    run: Path | None = None
    """The run's folder, if it is in one."""
    chosen: list[str] = field(default_factory=list)
    """What ``run=`` was taken for where it leaves a choice, one line each, to print before anything is loaded."""
    notices: list[str] = field(default_factory=list)
    """Notices to print, one line each."""
    combined: Combined | None = None
    """For an adapter that ``export.combine`` made."""
    quantised: str = ""
    """``export.quant`` of the export that is written of it; empty without one."""
