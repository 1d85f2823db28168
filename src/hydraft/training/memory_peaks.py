"""The most memory that loading, training and scoring have each taken on a card.

CUDA's counter holds the most since it was last set back; here it is set back whenever one of them ends. Main memory has no such
counter: what a process holds at its end is all that can be said of it, and not for which of them it was taken.
"""

import psutil
import torch
import torch.distributed as dist

MOMENTS = ("loading", "training", "scoring")


class Peaks:
    """Counts this rank's card; on a CPU, nothing until the end."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = dict.fromkeys(MOMENTS, 0)

    def end(self, moment: str) -> None:
        """What has been allocated since the last call was for ``moment``."""
        if self.device.type == "cuda":
            self.bytes[moment] = max(self.bytes[moment], torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()

    def result(self) -> dict[str, int | None]:
        """For result.json: bytes of the rank that has most; every rank must ask.

        Training's is ``peak_memory_bytes``. On a CPU that is the process's resident memory now, whatever it was taken for, and the
        others are None. So is scoring's where nothing was scored.
        """
        on_card = self.device.type == "cuda"
        mine = self.bytes if on_card else {**self.bytes, "training": psutil.Process().memory_info().rss}
        most = torch.tensor([mine[moment] for moment in MOMENTS], device=self.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        loading, training, scoring = most.tolist()
        return {
            "peak_memory_bytes": training,
            "peak_memory_scoring_bytes": scoring or None,
            "peak_memory_loading_bytes": loading or None,
        }
