"""The callback of ``debug=profile``: torch.profiler over a few steps of rank 0, as a trace and as a table of operators."""

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SKIPPED = 2
"""Steps before the measured ones: the first allocate memory and choose kernels."""

MEASURED = 3
"""Most steps that are measured; a trace of more is slow to open."""

FOLDER, TRACE, TABLE = "profile", "trace.json.gz", "operators.txt"
"""In the run's folder."""

ROWS = 12
"""Operators on the terminal; all are in the file."""


class ProfileCallback(TrainerCallback):
    """Measures the steps after the first two, without evaluation. Only rank 0 has one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self.profiler: profile | None = None
        self.first = self.last = 0
        """The steps that are measured."""

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Start before the first measured step."""
        if self.last:
            return
        step, left = state.global_step + 1, state.max_steps - state.global_step
        if left > MEASURED and step <= SKIPPED:
            return
        self.first, self.last = step, min(step + MEASURED - 1, state.max_steps)
        gpu = [ProfilerActivity.CUDA] if args.device.type == "cuda" else []
        self.profiler = profile(activities=[ProfilerActivity.CPU, *gpu], record_shapes=True, profile_memory=True)
        self.profiler.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Stop after the last measured step."""
        if self.profiler is None or state.global_step != self.last:
            return
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        self.profiler.stop()

    def write(self) -> tuple[str, list[list[str]]]:
        """Write the trace and the table; returns a title and the rows of ``HEAD``, the slowest operator first."""
        if self.profiler is None:
            return "no step was measured", []
        self.folder.mkdir(exist_ok=True)
        self.profiler.export_chrome_trace(str(self.folder / TRACE))
        averages = self.profiler.key_averages()
        on_gpu = any(one.self_device_time_total for one in averages)
        key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        text = averages.table(sort_by=key, row_limit=-1)
        (self.folder / TABLE).write_text(text, encoding="utf-8")
        times = sorted(((getattr(one, key), one) for one in averages), key=lambda pair: -pair[0])
        steps, total = self.last - self.first + 1, sum(time for time, _ in times) or 1.0
        rows = [
            [one.key, f"{one.count / steps:,.0f}", f"{time / steps / 1000:,.1f} ms", f"{time / total:.1%}"]
            for time, one in times[:ROWS]
        ]
        where = "on the GPU" if on_gpu else "on the CPU"
        return f"operators {where}, steps {self.first} to {self.last}: {total / steps / 1000:,.1f} ms a step", rows
