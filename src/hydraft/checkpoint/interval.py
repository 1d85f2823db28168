"""``train.save_minutes``: decides by the clock of rank 0 when a checkpoint is due, without communication at most steps."""

import time

import torch
import torch.distributed as dist

SHARE = 0.02
"""Share of the time that saving may take. After a slow checkpoint, the next one is postponed."""

CHECK_SECONDS = 2.0
"""Between two checks of the clock, if steps take as long as before."""


class Interval:
    """The interval between checkpoints. Every rank has one, and all decide the same.

    Rank 0 checks its clock at a few steps, and broadcasts (8 bytes) after how many steps it checks again. With steps of 0.1 s that
    is one step in twenty. If steps become slower, a checkpoint is a little late.
    """

    def __init__(self, minutes: float | None, device: torch.device | str = "cpu") -> None:
        """``minutes``: None for no checkpoints by the clock. ``device``: that of the process group's tensors."""
        self.minutes = minutes
        self.device = device
        self.took = 0.0
        """Seconds of the last checkpoint."""
        self.begin(0)

    def begin(self, step: int) -> None:
        """Start the interval after ``step``."""
        self.begun = time.monotonic()
        self.next_check = step + 1
        """The step after which rank 0 checks its clock."""
        self.last_check = (step, self.begun)

    def saved(self, step: int, seconds: float) -> None:
        """A checkpoint was saved, for any reason, in ``seconds``."""
        self.took = seconds
        self.begin(step)

    def due(self, step: int) -> bool:
        """Whether to save after ``step``. Every rank must call it after each step."""
        if self.minutes is None or step < self.next_check:
            return False
        steps = torch.tensor(self._next(step) if dist.get_rank() == 0 else 0, device=self.device)
        dist.broadcast(steps, 0)
        self.next_check = step + max(1, int(steps))
        return int(steps) == 0

    def _next(self, step: int) -> int:
        """Steps until the next check; 0 if a checkpoint is due. At half of the remaining time, slower steps are noticed early."""
        assert self.minutes is not None
        now = time.monotonic()
        remaining = max(60 * self.minutes, self.took / SHARE) - (now - self.begun)
        step_then, then = self.last_check
        self.last_check = (step, now)
        pace = max((now - then) / (step - step_then), 1e-4)
        return 0 if remaining <= 0 else max(1, int(min(remaining / 2, CHECK_SECONDS) / pace))
