"""Memory by purpose. No torch."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Parts:
    """Bytes of one rank, on its GPU or in main memory."""

    weights: int = 0
    """The model's weights, with their quantisation constants."""
    adapter: int = 0
    gradients: int = 0
    optimizer: int = 0
    """Moments, and the fp32 copy of what is trained."""
    activations: int = 0
    """What the forward pass keeps for the backward pass."""
    logits: int = 0
    cache: int = 0
    """Keys and values of earlier tokens, while answers are generated."""
    buffers: int = 0
    """Buffers of communication, of gathered or dequantised weights, and of gradients that are being reduced."""
    overhead: int = 0
    """Memory of the driver and the libraries, and fragmentation of the allocator."""

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(self.to_dict().values())

    def to_dict(self) -> dict[str, int]:
        """The bytes of each part, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __add__(self, other: "Parts") -> "Parts":
        return Parts(**{name: value + getattr(other, name) for name, value in self.to_dict().items()})

    def times(self, ranks: int) -> "Parts":
        """The sum over ``ranks`` equal ranks."""
        return Parts(**{name: value * ranks for name, value in self.to_dict().items()})


def size(count: float) -> str:
    """Bytes with a unit."""
    for least, unit, name in ((2**40, 2**40, "TiB"), (0.1 * 2**30, 2**30, "GiB"), (0.1 * 2**20, 2**20, "MiB")):
        if count >= least:
            return f"{count / unit:,.1f} {name}"
    return f"{count / 2**10:,.0f} KiB" if count else "–"
