"""Memory, split into what it is for. No torch."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Parts:
    """Bytes of one rank, on its card or in main memory."""

    weights: int = 0
    """The model's own, with the constants of quantised ones."""
    adapter: int = 0
    gradients: int = 0
    optimizer: int = 0
    """Moments, and the fp32 copy of what is trained."""
    activations: int = 0
    """What the forward pass keeps for the backward pass."""
    logits: int = 0
    cache: int = 0
    """Keys and values of the tokens before, while answers are generated."""
    buffers: int = 0
    """Of communication, of gathered or unpacked weights, and of gradients on their way."""
    overhead: int = 0
    """The driver's and the libraries' own, and what the allocator cannot use."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.to_dict().values())

    def to_dict(self) -> dict[str, int]:
        """Name and bytes of each part."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __add__(self, other: "Parts") -> "Parts":
        return Parts(**{name: value + getattr(other, name) for name, value in self.to_dict().items()})

    def times(self, ranks: int) -> "Parts":
        """Of so many ranks together."""
        return Parts(**{name: value * ranks for name, value in self.to_dict().items()})


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for least, unit, name in ((2**40, 2**40, "TiB"), (0.1 * 2**30, 2**30, "GiB"), (0.1 * 2**20, 2**20, "MiB")):
        if count >= least:
            return f"{count / unit:,.1f} {name}"
    return f"{count / 2**10:,.0f} KiB" if count else "–"
