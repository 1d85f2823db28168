"""Peak memory of loading, training and evaluation on a GPU.

CUDA's counter is reset at the end of each phase. Main memory has no such counter; on a CPU, only the resident memory at the end is
known.
"""

import psutil
import torch
import torch.distributed as dist

PHASES = ("loading", "training", "scoring")


class MemoryPeaks:
    """The peaks of this rank."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = dict.fromkeys(PHASES, 0)

    def end(self, phase: str) -> None:
        """End a phase: the peak since the last call is one of ``phase``."""
        if self.device.type == "cuda":
            self.bytes[phase] = max(self.bytes[phase], torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()

    def result(self) -> dict[str, int | None]:
        """For result.json: the bytes of the rank with the largest peak. Every rank must call it.

        ``peak_memory_bytes`` is that of training. On a CPU it is the current resident memory, and the others are None. That of
        evaluation (``peak_memory_scoring_bytes``) is also None if there was none.
        """
        on_gpu = self.device.type == "cuda"
        own = self.bytes if on_gpu else {**self.bytes, "training": psutil.Process().memory_info().rss}
        most = torch.tensor([own[phase] for phase in PHASES], device=self.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        loading, training, scoring = most.tolist()
        return {
            "peak_memory_bytes": training,
            "peak_memory_scoring_bytes": scoring or None,
            "peak_memory_loading_bytes": loading or None,
        }
