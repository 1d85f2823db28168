"""What ``run=`` was found to be: an adapter or a model, with its base. No torch."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from hydraft.config.choices import Precision
from hydraft.config.schema import ModelConfig, QuantConfig

ADAPTER = "adapter_model.safetensors"


class Kind(Enum):
    adapter = "adapter"
    model = "model"


@dataclass
class Source:
    """Something to use."""

    kind: Kind
    folder: Path
    """Where the adapter's or the model's own files are: weights, tokenizer, template."""
    name: str
    """What it is called among several, and on a server."""
    model: ModelConfig
    """The base; for ``Kind.model`` the model itself."""
    quant: QuantConfig
    precision: Precision
    """What is computed in; ``auto`` for what the model's own config.json has."""
    template: str
    """As data.template has it."""
    max_length: int | None = None
    """Tokens a record had in training, at most; None where that is not known."""
    seed: int = 42
    """Of the run: drawn weights are made from it."""
    origin: ModelConfig | None = None
    """For ``Kind.model``: what it was trained from; None where that is not known."""
    base_sha256: str | None = None
    """``identity.fingerprint`` of the base that the adapter was trained on; None where it was not recorded."""
    base_name: str = ""
    """What the base was called in training."""
    run: Path | None = None
    """The run's folder, where this is part of one."""
    notices: list[str] = field(default_factory=list)
    """What a person should know, a line each."""
