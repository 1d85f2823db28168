"""The optimizer section of the schema, and what distinguishes its kinds: one entry each, read by the rules, the plan and the trainer. No torch."""

from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from hydraft.config.bounds import setting

BLOCK, SMALLEST = 256, 4096
"""bitsandbytes, optim/optimizer.py: elements of which the 8-bit moments share a scale, and of a tensor from which on they have 8 bits."""

PAGED = 100_000
"""Elements of a tensor from which on its moments are in paged memory (``get_state_buffer``)."""

BUCKET = 2**26
"""Elements of hidden matrices that Muon gathers at once; a larger matrix is gathered alone."""


class OptimizerKind(Enum):
    adamw = "adamw"
    adamw_8bit = "adamw_8bit"
    paged_adamw_8bit = "paged_adamw_8bit"
    lion = "lion"
    adafactor = "adafactor"
    muon = "muon"


@dataclass(frozen=True)
class Algorithm:
    """What a kind of optimizer keeps and needs."""

    settings: tuple[str, ...] = ("weight_decay", "betas", "eps")
    """The settings of this section that it reads, besides ``kind`` and ``lora_plus``."""
    moments: int = 2
    """Numbers that it keeps for each element; ``muon`` keeps one for those of a hidden matrix."""
    bits: int = 32
    """Of each of these numbers."""
    paged: bool = False
    """Whether they are in CUDA's managed memory, which the driver moves to main memory where the GPU's does not suffice."""
    whole: bool = False
    """Whether a step needs every element of a tensor: it cannot step on the flat shards of ZeRO."""


ALGORITHMS = {
    OptimizerKind.adamw: Algorithm(),  # arXiv:1711.05101
    OptimizerKind.adamw_8bit: Algorithm(bits=8),  # arXiv:2110.02861
    OptimizerKind.paged_adamw_8bit: Algorithm(bits=8, paged=True),  # arXiv:2305.14314
    OptimizerKind.lion: Algorithm(("weight_decay", "betas"), moments=1),  # arXiv:2302.06675
    OptimizerKind.adafactor: Algorithm(("weight_decay",), moments=0, whole=True),  # arXiv:1804.04235
    OptimizerKind.muon: Algorithm(("weight_decay", "betas", "eps", "momentum")),  # arXiv:2502.16982
}
"""By ``optimizer.kind``."""


@dataclass
class OptimizerConfig:
    """The optimizer."""

    kind: OptimizerKind = OptimizerKind.adamw
    """``adamw``; ``adamw_8bit``, with moments of 8 bits, and ``paged_adamw_8bit``, in memory that the GPU shares with the machine;
    ``lion``, with one moment; ``adafactor``, with a row and a column of each matrix; ``muon``, which orthogonalises the updates of
    hidden matrices and steps the other tensors with AdamW."""
    weight_decay: float = setting(0.0, at_least=0)
    """Decoupled weight decay."""
    betas: list[float] = setting(
        factory=lambda: [0.9, 0.999],
        valid=lambda betas: len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
        allowed="two numbers in [0, 1)",
    )
    """Decay rates of the first and the second moment; with ``lion``, of the update and of its moment."""
    eps: float = setting(1e-8, above=0)
    """Added to the square root of the second moment."""
    momentum: float = setting(0.95, at_least=0, below=1)
    """``muon``: decay rate of a matrix's momentum (Nesterov)."""
    lora_plus: float | None = setting(None, at_least=1, hint=", or null for one rate")
    """LoRA+ (arXiv:2402.12354): how many times the learning rate of A that of B is. null: they have the same."""

    @property
    def algorithm(self) -> Algorithm:
        """The entry of ``kind``."""
        return ALGORITHMS[self.kind]

    @property
    def unread(self) -> list[str]:
        """Settings that were given and that this kind does not read."""
        read = ("kind", "lora_plus", *self.algorithm.settings)
        default: Any = OptimizerConfig()
        return [
            one.name
            for one in fields(self)
            if one.name not in read and getattr(self, one.name) != getattr(default, one.name)
        ]
