"""A card as the driver describes it. No torch."""

from dataclasses import dataclass

FIRST_DRIVER = {11: 450, 12: 525, 13: 580}
"""The driver that each CUDA release begins with; within a release, each driver runs what was built for any of its versions
(CUDA Toolkit release notes, minor version compatibility)."""


@dataclass(frozen=True)
class Gpu:
    """What CUDA counts as one device: a card, or a MIG slice of one."""

    name: str
    memory: int
    """Bytes; 0 where it is not known. Of a card without memory of its own, the machine's main memory."""
    compute_capability: float
    """0.0 where it is not known."""
    index: int | None = None
    """Its number in nvidia-smi's list; of a slice, its card's. None for a card that is not here."""
    uuid: str = ""
    """``GPU-…``, or ``MIG-…`` for a slice."""
    free: int | None = None
    """Bytes that no process had when the driver was asked; None where the driver does not say."""
    reserved: int = 0
    """Bytes that the driver keeps for itself."""
    unified: bool = False
    """Its memory is the machine's main memory."""

    @property
    def is_slice(self) -> bool:
        """Whether it is a MIG slice."""
        return self.uuid.startswith("MIG-")

    @property
    def available(self) -> int:
        """Bytes that a run can have: what is free, or, where that is not known, all but the driver's own; 0 if not known."""
        if self.free is not None and self.memory:
            return max(1, self.free)  # 0 is for what is not known
        return max(0, self.memory - self.reserved)

    @property
    def taken(self) -> int:
        """Bytes that other processes have."""
        return max(0, self.memory - self.reserved - self.available)


@dataclass(frozen=True)
class Card:
    """A card in the machine."""

    gpu: Gpu
    slices: tuple[Gpu, ...] | None = None
    """Its MIG slices; None where MIG is off, and CUDA has the whole card."""
    failure: str = ""
    """Why it does not answer."""


@dataclass(frozen=True)
class Answer:
    """What the driver says of the machine."""

    cards: tuple[Card, ...] = ()
    driver: str = ""
    """Its version, such as 580.65.06."""
    cuda: str = ""
    """The newest CUDA version that it runs, such as 13.0."""
    failure: str = ""
    """Why there is no answer, where there is a driver."""
