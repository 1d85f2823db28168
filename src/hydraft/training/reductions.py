"""What the ranks share of an optimizer step: summed over them, and read at once or later.

To read a number that is on a card is to wait for all that the card has yet to do.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass
class Made:
    """What this rank knows of a step that it has made."""

    step: int
    losses: torch.Tensor
    """Of its micro-batches, ``(micro-batches,)``, on the device."""
    norm: Any
    """Of the gradients, as DeepSpeed has it; None where it does not compute it."""
    skipped: bool
    """Whether fp16's loss scaler left the step out."""
    at_floor: bool
    """Whether its scale can fall no further."""


class Reading:
    """Numbers on their way from the device: asked for without waiting, read when they are due."""

    def __init__(self, values: torch.Tensor) -> None:
        self.there = values
        self.event: torch.cuda.Event | None = None
        if values.is_cuda:
            self.there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.there.copy_(values, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def read(self) -> list[float]:
        """The numbers; waits until they are there."""
        if self.event is not None:
            self.event.synchronize()
        values: list[float] = self.there.tolist()
        return values


def agreed(mine: torch.Tensor, norm: float, unknown: bool) -> tuple[float, bool, bool]:
    """Over all ranks: the step's loss, whether a gradient norm is no finite number, and whether it is 0.

    Args:
        mine: losses of this rank's micro-batches, ``(micro-batches,)``.
        unknown: the norm was not computed.
    """
    broken = not unknown and not (math.isfinite(norm) and norm >= 0)
    shared = torch.stack(
        [mine.sum().double(), mine.new_tensor(float(broken)).double(), mine.new_tensor(float(norm == 0)).double()]
    )
    world = dist.get_world_size()
    if world > 1:
        dist.all_reduce(shared)
    loss, bad, zeros = shared.tolist()
    return loss / world, bad > 0, zeros == world


def summed(made: Made, more: list[float]) -> Reading:
    """The same and the sums of ``more``, without a wait for the device.

    Returns:
        To be read: the losses of all ranks, how many have a norm that is no finite number, how many have one of 0, ``more``.
    """
    norm, device = made.norm, made.losses.device
    known = norm is not None and not torch.is_tensor(norm)
    bad, zero = known and not (math.isfinite(norm) and norm >= 0), known and norm == 0
    numbers = torch.tensor(
        [0.0, float(bad), float(zero), *more], dtype=torch.float64, pin_memory=device.type == "cuda"
    )  # from memory that is not pinned, a copy would wait
    shared = numbers.to(device, non_blocking=True)
    shared[0] = made.losses.sum()
    if torch.is_tensor(norm):
        shared[1], shared[2] = ~(norm.isfinite() & (norm >= 0)), norm == 0
    if dist.get_world_size() > 1:
        dist.all_reduce(shared)
    return Reading(shared)
