"""The callback of ``train.profile``: torch.profiler over some steps of rank 0: a trace, a table of operators, and the parts of a step."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydraft.runs.profile_files import FOLDER, MEMORY, TABLE, TRACE

ROWS = 12
"""Operators on the terminal; all are in the file."""

PARTS = ("data", "forward", "backward", "optimizer")
"""Parts of a step, and their names in the trace."""

COMMUNICATION = ("gloo:", "ncclDevKernel", "ncclKernel")
"""How the names of events begin in which a rank sends or receives, on CPUs and on GPUs."""

MEMORY_EVENTS = 200_000
"""Most allocations in the memory snapshot; the newest are kept."""

Span = tuple[float, float]
"""When an event began and ended, in microseconds."""


class ProfileCallback(TrainerCallback):
    """Measures the steps of ``train.profile``, from the data of the first one on. Only rank 0 has one."""

    def __init__(self, folder: Path, first: int, last: int) -> None:
        """``folder``: the run's."""
        self.folder = folder / FOLDER
        self.first, self.last = first, last
        self.trainer: Any = None
        """Its data, forward and backward passes and optimizer steps are named in the trace."""
        self.profiler: profile | None = None
        self.tokens = 0
        """Of this rank, in the measured steps."""
        self._undo: list[Callable[[], None]] = []
        self._on_gpu = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Measure fewer steps if the run has fewer, and start if the first of this attempt is to be measured."""
        self.last = min(self.last, state.max_steps)
        self._on_gpu = args.device.type == "cuda"
        if state.global_step + 1 == self.first:
            self._start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Stop after the last measured step; start before the data of the first one is fetched."""
        if self.profiler is not None and state.global_step == self.last:
            self._stop()
        if state.global_step + 1 == self.first <= self.last:
            self._start()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Stop, if training ended early."""
        if self._undo:
            self.last = state.global_step
            self._stop()

    def _start(self) -> None:
        gpu = [ProfilerActivity.CUDA] if self._on_gpu else []
        self.profiler = profile(activities=[ProfilerActivity.CPU, *gpu], record_shapes=True, profile_memory=True)
        trainer, engine = self.trainer, self.trainer.model_wrapped
        for part, owner, name in (
            ("data", trainer, "get_batch_samples"),
            ("forward", trainer, "compute_loss"),
            ("backward", engine, "backward"),
            ("optimizer", engine, "step"),
        ):
            self._name(part, owner, name)
        self.tokens = -trainer.tokens
        if self._on_gpu:
            torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
        self.profiler.start()

    def _name(self, part: str, owner: Any, name: str) -> None:
        """Name the calls of a method in the trace. A GPU is waited for at its end, so that what it does counts here."""
        method = getattr(owner, name)

        def named(*args: Any, **rest: Any) -> Any:
            with record_function(part):
                result = method(*args, **rest)
                if self._on_gpu:
                    torch.cuda.synchronize()
                return result

        setattr(owner, name, named)
        self._undo.append(lambda: delattr(owner, name))

    def _stop(self) -> None:
        assert self.profiler is not None
        if self._on_gpu:
            torch.cuda.synchronize()
        self.profiler.stop()
        self.tokens += self.trainer.tokens
        for undo in self._undo:
            undo()
        self._undo = []
        if self._on_gpu:
            self.folder.mkdir(exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(self.folder / MEMORY))
            torch.cuda.memory._record_memory_history(enabled=None)

    @property
    def steps(self) -> int:
        """The number of measured steps."""
        return 0 if self.profiler is None else self.last - self.first + 1

    def write(self) -> None:
        """Write the trace and the table of operators, the slowest first."""
        assert self.profiler is not None
        self.folder.mkdir(exist_ok=True)
        self.profiler.export_chrome_trace(str(self.folder / TRACE))
        text = self.profiler.key_averages().table(sort_by=self._key(), row_limit=-1)
        (self.folder / TABLE).write_text(text, encoding="utf-8")

    def operators(self) -> tuple[str, list[list[str]]]:
        """A title, and rows of the slowest operators: name, calls a step, time a step, share."""
        assert self.profiler is not None
        key, steps = self._key(), self.steps
        named = (one for one in self.profiler.key_averages() if one.key not in PARTS)
        times = sorted(((getattr(one, key), one) for one in named), key=lambda pair: -pair[0])
        total = sum(time for time, _ in times) or 1.0
        rows = [
            [one.key, f"{one.count / steps:,.0f}", f"{time / steps / 1000:,.1f} ms", f"{time / total:.1%}"]
            for time, one in times[:ROWS]
        ]
        where = "on the GPU" if key == "self_device_time_total" else "on the CPU"
        return f"operators {where}, {self._window()}: {total / steps / 1000:,.1f} ms a step", rows

    def parts(self) -> tuple[str, list[list[str]]]:
        """A title with the tokens per second, and rows of the parts of a step: name, time a step, share, and of it communication."""
        assert self.profiler is not None
        events = [(one.name, (one.time_range.start, one.time_range.end)) for one in self.profiler.events() or ()]
        found = times_of_parts(events)
        whole = sum(time for time, _ in found.values()) or 1.0
        rows = [
            [
                part,
                f"{time / self.steps / 1000:,.1f} ms",
                f"{time / whole:.1%}",
                f"{sent / self.steps / 1000:,.1f} ms",
            ]
            for part, (time, sent) in found.items()
        ]
        each, sent = whole / self.steps / 1000, sum(sent for _, sent in found.values()) / self.steps / 1000
        rows.append(["a step", f"{each:,.1f} ms", "100.0%", f"{sent:,.1f} ms"])
        return f"{self._window()}, while measured: {self.tokens * 1e6 / whole:,.0f} tokens/s of this rank", rows

    def _window(self) -> str:
        return f"step {self.first}" if self.steps == 1 else f"steps {self.first} to {self.last}"

    def _key(self) -> str:
        """The time of an operator without those that it calls: on the GPU, if there is one."""
        assert self.profiler is not None
        on_gpu = any(one.self_device_time_total for one in self.profiler.key_averages())
        return "self_device_time_total" if on_gpu else "self_cpu_time_total"


def times_of_parts(events: Iterable[tuple[str, Span]]) -> dict[str, tuple[float, float]]:
    """The time of each of ``PARTS``, and of the ``rest`` between the first of them and the last; and of each, the time of communication.

    Args:
        events: names and spans of a trace, in microseconds. Parts do not overlap.

    Returns:
        Microseconds of all events together, and of those the microseconds in which this rank sent or received anything.
    """
    events = list(events)
    spans = {part: united(span for name, span in events if name == part) for part in PARTS}
    sent = united(span for name, span in events if name.startswith(COMMUNICATION))
    every = united(span for part in PARTS for span in spans[part])
    if not every:
        return {}
    found = {part: (length(own), length(common(own, sent))) for part, own in spans.items()}
    whole = [(every[0][0], every[-1][1])]
    rest = length(whole) - length(every)
    found["rest"] = rest, length(common(whole, sent)) - length(common(every, sent))
    return found


def united(spans: Iterable[Span]) -> list[Span]:
    """The spans in order, those that overlap joined."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def common(first: list[Span], second: list[Span]) -> list[Span]:
    """What is in both of two united lists."""
    pairs = ((max(a, c), min(b, d)) for a, b in first for c, d in second)
    return [(start, end) for start, end in pairs if start < end]


def length(spans: list[Span]) -> float:
    """The length of united spans."""
    return sum(end - start for start, end in spans)
