"""When the clock says that a checkpoint is due: rank 0's clock, told to all, without a word at most steps."""

import time

import torch
import torch.distributed as dist

SHARE = 0.02
"""Of the time that saving may take: where a checkpoint takes long, the next one waits."""

LOOK_SECONDS = 2.0
"""Between two looks at the clock, as long as steps take what they took."""


class Interval:
    """Minutes between two checkpoints; every rank has one, and all get the same answer.

    Rank 0 looks at its clock at few steps, and says at each how many there are to the next look. So a step of a tenth of a second
    costs nothing nineteen times out of twenty, and then one broadcast of eight bytes; steps that grow slower make it late by little.
    """

    def __init__(self, minutes: float | None, device: torch.device | str = "cpu") -> None:
        """``minutes``: None for never. ``device``: where the process group's tensors are."""
        self.minutes = minutes
        self.device = device
        self.took = 0.0
        """Seconds of the last checkpoint."""
        self.begin(0)

    def begin(self, step: int) -> None:
        """Count from now, after ``step``."""
        self.begun = time.monotonic()
        self.look = step + 1
        """The step after which rank 0 looks at its clock."""
        self.looked = (step, self.begun)

    def saved(self, step: int, seconds: float) -> None:
        """A checkpoint is there, whoever asked for it; it took ``seconds``."""
        self.took = seconds
        self.begin(step)

    def due(self, step: int) -> bool:
        """Whether to save after ``step``; every rank must ask, after each step."""
        if self.minutes is None or step < self.look:
            return False
        answer = torch.tensor(self._next(step) if dist.get_rank() == 0 else 0, device=self.device)
        dist.broadcast(answer, 0)
        self.look = step + max(1, int(answer))
        return int(answer) == 0

    def _next(self, step: int) -> int:
        """Steps to the next look; 0 if a checkpoint is due. Half of what is left is not overshot by steps a little slower."""
        assert self.minutes is not None
        now = time.monotonic()
        left = max(60 * self.minutes, self.took / SHARE) - (now - self.begun)
        before, then = self.looked
        self.looked = (step, now)
        pace = max((now - then) / (step - before), 1e-4)
        return 0 if left <= 0 else max(1, int(min(left / 2, LOOK_SECONDS) / pace))
