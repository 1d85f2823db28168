"""A member's adapter on one linear layer of the base."""

from dataclasses import dataclass
from typing import Any

import torch

ADAPTER = "default"
"""peft's name of a member's adapter in its own model."""


@dataclass
class Adapter:
    """That of one member. Shapes: D features in, F features out, r the rank."""

    number: int
    """Of its share in the pass."""
    layer: Any
    down: torch.nn.Parameter  # (r, D)
    up: torch.nn.Parameter  # (F, r)
    scaling: float
    dropout: float
    """The probability of dropping a feature."""
    plain: bool
    """Whether its update is an addition to the base's result."""

    def __post_init__(self) -> None:
        self.rank, self.outputs = len(self.down), len(self.up)
        self.shape = self.number, self.rank, self.outputs, self.dropout > 0, self.scaling
        """Layers whose adapters agree in these have their products computed alike."""

    @classmethod
    def of(cls, number: int, layer: Any) -> "Adapter":
        """That of peft's ``layer``."""
        dropout = layer.lora_dropout[ADAPTER]
        return cls(
            number,
            layer,
            layer.lora_A[ADAPTER].weight,
            layer.lora_B[ADAPTER].weight,
            float(layer.scaling[ADAPTER]),
            float(dropout.p) if isinstance(dropout, torch.nn.Dropout) else 0.0,
            ADAPTER not in layer.lora_variant,
        )


Drawn = tuple[Adapter, torch.Generator | None]
"""An adapter, and what its dropout draws from."""
