"""Reductions over the ranks after an optimizer step, with a result that is read at once or later.

Reading a number from a GPU waits until the GPU has finished all queued work.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass
class StepResult:
    """What this rank knows about an optimizer step."""

    step: int
    losses: torch.Tensor
    """Of its micro-batches, (micro-batches,), on the device."""
    norm: Any
    """The gradient norm from DeepSpeed; None if it is not computed."""
    skipped: bool
    """Whether fp16's loss scaler skipped the step."""
    at_floor: bool
    """Whether gradients overflow at the smallest loss scale."""


class PendingNumbers:
    """Numbers that are copied from the device without waiting, to be read later."""

    def __init__(self, values: torch.Tensor) -> None:
        self.copy = values
        self.event: torch.cuda.Event | None = None
        if values.is_cuda:
            self.copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self.copy.copy_(values, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def read(self) -> list[float]:
        """The numbers; waits for the copy."""
        if self.event is not None:
            self.event.synchronize()
        values: list[float] = self.copy.tolist()
        return values


def reduce_now(losses: torch.Tensor, norm: float, unknown: bool) -> tuple[float, bool, bool]:
    """Over all ranks: the loss of the step, whether a gradient norm is not finite, and whether it is 0.

    Args:
        losses: of this rank's micro-batches, (micro-batches,).
        unknown: the norm was not computed.
    """
    broken = not unknown and not (math.isfinite(norm) and norm >= 0)
    shared = torch.stack(
        [losses.sum().double(), losses.new_tensor(float(broken)).double(), losses.new_tensor(float(norm == 0)).double()]
    )
    world = dist.get_world_size()
    if world > 1:
        dist.all_reduce(shared)
    loss, bad, zeros = shared.tolist()
    return loss / world, bad > 0, zeros == world


def reduce_later(result: StepResult, more: list[float]) -> PendingNumbers:
    """The same and the sums of ``more``, without waiting for the device.

    Returns:
        Over all ranks: the sum of losses, the numbers of norms that are not finite and of those that are 0, the sums of ``more``.
    """
    norm, device = result.norm, result.losses.device
    known = norm is not None and not torch.is_tensor(norm)
    bad, zero = known and not (math.isfinite(norm) and norm >= 0), known and norm == 0
    numbers = torch.tensor(
        [0.0, float(bad), float(zero), *more], dtype=torch.float64, pin_memory=device.type == "cuda"
    )  # a copy from memory that is not pinned would wait
    shared = numbers.to(device, non_blocking=True)
    shared[0] = result.losses.sum()
    if torch.is_tensor(norm):
        shared[1], shared[2] = ~(norm.isfinite() & (norm >= 0)), norm == 0
    if dist.get_world_size() > 1:
        dist.all_reduce(shared)
    return PendingNumbers(shared)
