"""GPUs as the driver describes them. No torch."""

from dataclasses import dataclass

FIRST_DRIVER = {11: 450, 12: 525, 13: 580}
"""The first driver of each CUDA release; within a release, every driver supports builds for any of its versions (CUDA Toolkit
release notes, minor version compatibility)."""


@dataclass(frozen=True)
class Gpu:
    """A CUDA device: a card, or a MIG slice of one."""

    name: str
    memory: int
    """Bytes; 0 if not known. For a GPU that shares the machine's memory, the main memory."""
    compute_capability: float
    """0.0 if not known."""
    index: int | None = None
    """Number in nvidia-smi's list; for a slice, that of its card. None for a GPU that is not in this machine."""
    uuid: str = ""
    """``GPU-…``, or ``MIG-…`` for a slice."""
    free: int | None = None
    """Bytes that no process used when the driver was queried; None if the driver does not report it."""
    reserved: int = 0
    """Bytes that the driver reserves for itself."""
    unified: bool = False
    """Whether it shares the machine's main memory."""

    @property
    def is_slice(self) -> bool:
        """Whether it is a MIG slice."""
        return self.uuid.startswith("MIG-")

    @property
    def available(self) -> int:
        """Bytes that a run can use: the free ones, or, if not known, all but the driver's; 0 if nothing is known."""
        if self.free is not None and self.memory:
            return max(1, self.free)  # 0 means not known
        return max(0, self.memory - self.reserved)

    @property
    def taken(self) -> int:
        """Bytes that other processes use."""
        return max(0, self.memory - self.reserved - self.available)


@dataclass(frozen=True)
class Card:
    """A card of the machine, with its MIG slices."""

    gpu: Gpu
    slices: tuple[Gpu, ...] | None = None
    """Its MIG slices; None if MIG is off."""
    failure: str = ""
    """Why it does not respond; empty if it does."""


@dataclass(frozen=True)
class DriverInfo:
    """What the driver reports about the machine."""

    cards: tuple[Card, ...] = ()
    driver: str = ""
    """Version of the driver, such as 580.65.06."""
    cuda: str = ""
    """The newest CUDA version that it supports, such as 13.0."""
    failure: str = ""
    """Why a driver that is installed reports nothing."""
