"""The schema that Hydra composes: ``Config`` with the earlier names of settings, which are null where no file has them. No torch."""

from dataclasses import dataclass, field
from typing import Any

from hydraft.config.schema import Config
from hydraft.config.train import TrainConfig


@dataclass
class _Train(TrainConfig):
    weight_decay: Any = None
    betas: Any = None
    eps: Any = None


@dataclass
class EarlierConfig(Config):
    """A run, as any file of ``conf/`` may set it; ``moved.composed`` gives the values their present names."""

    train: _Train = field(default_factory=_Train)
