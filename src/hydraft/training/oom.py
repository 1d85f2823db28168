"""Out of memory on a rank: in which phase, which part of the plan was wrong, and which override to try first."""

import json
import re
import resource
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import torch

from hydraft.config.schema import Config
from hydraft.models.load import trainable
from hydraft.plan import plan
from hydraft.plan.memory import DRIVER, Memory, ModelSize, memory
from hydraft.plan.memory_parts import size
from hydraft.plan.parameters import trained
from hydraft.plan.suggest import cheapest
from hydraft.system import hardware

WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "alloc_failed")
"""How torch, CUDA's libraries and the system say it."""

PHASES = {  # frames of a traceback, (end of the file, function), to where that is; the first that is there counts
    ("deepspeed/runtime/engine.py", "step"): "in the optimizer's step",
    ("accelerate/accelerator.py", "backward"): "in the backward pass",
    ("transformers/trainer.py", "compute_loss"): "in the forward pass",
    ("hydraft/evaluation/evaluator.py", "score"): "while held-out records were scored",
    ("hydraft/checkpoint/weights.py", "save"): "while saving",
    ("hydraft/training/trainer.py", "_prepare_for_training"): "while the optimizer was set up",
    ("hydraft/models/load.py", "load_trainable"): "while the model was loaded",
    ("hydraft/data/cache.py", "training"): "while records were encoded",
}
GROUPS = {
    "weights": ("weights",),
    "adapter": ("adapter",),
    "optimizer": ("optimizer",),
    "activations, logits, gradients and buffers": ("activations", "logits", "cache", "gradients", "buffers"),
}
"""Parts of the plan, as far as they can be told apart in a process."""

PASSES = list(GROUPS)[-1]


class OutOfMemory(Exception):
    """An allocation failed; the message is one line for a person, and begins with where."""


@dataclass(frozen=True)
class Found:
    """Bytes of this rank, on its card or in main memory, when the allocation failed."""

    parts: dict[str, int]
    """By the names of ``GROUPS``."""
    base: int
    """What the process took before there was a model, or the driver's own."""
    asked: int
    """What was asked for; 0 where the error does not say."""
    room: int
    """What this rank could have in all."""
    barrier: str
    """What kept it from more, in words."""

    @property
    def needed(self) -> int:
        """What would have had to be there, at least."""
        return self.base + sum(self.parts.values()) + self.asked


class Watch:
    """Turns an allocation that fails inside its block into ``OutOfMemory``."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.base = psutil.Process().memory_info().rss
        self.model: torch.nn.Module | None = None
        self.trainer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = next((link for link in _chain(error) if is_one(link)), None)
        if not isinstance(error, Exception) or failed is None:
            return
        phase = phase_of(error)
        try:
            found = self.measure(str(failed))
            for link in _chain(error):
                traceback.clear_frames(link.__traceback__)  # with them go the tensors of the pass
            told = self.explain(phase, found)
        except Exception as another:  # the cause must come out whatever happens here
            told = f"{phase}: {' '.join(str(failed).split())[:200]} (its parts are not known: {another!r})"
        raise OutOfMemory(told) from error

    def measure(self, said: str) -> Found:
        """What is there now; ``said`` is the error's text."""
        model = self.model
        learns = {} if model is None else trainable(model)
        held = [] if model is None else [*model.parameters(), *model.buffers()]
        names = {id(parameter) for parameter in learns.values()}
        seen: set[int] = set()
        adapter = _bytes((p for p in held if id(p) in names), seen)
        weights = _bytes((p for p in held if id(p) not in names), seen)
        optimizer = _bytes(_states(getattr(self.trainer, "model_wrapped", None)), seen)
        if len(names) == len([p for p in held if isinstance(p, torch.nn.Parameter)]):  # full fine-tuning
            weights, adapter = adapter + weights, 0
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            used, base = torch.cuda.memory_allocated(), DRIVER
            others = max(0, total - free - torch.cuda.memory_reserved() - DRIVER)
            room, barrier = total - others, f"of the card's {size(total)}"
            if others > DRIVER:
                barrier += f" (other processes have {size(others)} of it)"
        else:
            used, base = psutil.Process().memory_info().rss - self.base, self.base
            left, barrier = _left()
            room = used + base + left
        known = {"weights": weights, "adapter": adapter, "optimizer": optimizer}
        parts = {**known, PASSES: max(0, used - sum(known.values()))}
        return Found(parts, base, _asked(said), room, barrier)

    def explain(self, phase: str, found: Found) -> str:
        """The line: what was asked for, what was there, what the plan had, and what to try."""
        asked = f"{size(found.asked)} more" if found.asked else "more"
        line = f"{phase}: {asked} did not fit beside {size(found.needed - found.asked)}, {found.barrier}"
        on_gpu, file = torch.cuda.is_available(), self.folder / "plan.json"
        known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        if not known.get("cost"):
            return f"{line}; the plan knows nothing of this model's memory; try a smaller train.micro_batch_size or data.max_length"
        moment = "loading" if "loaded" in phase else "scoring" if "scored" in phase else "training"
        planned = known["cost"]["memory"][moment if on_gpu else f"host_{moment}"]
        line += f"; {_wrong(planned, found)}"
        return f"{line}; try {self._change(known, found, sum(planned.values()), on_gpu)}"

    def _change(self, known: dict[str, Any], found: Found, planned: int, on_gpu: bool) -> str:
        """The cheapest change with which the plan, corrected by what was found, fits."""
        config, error = self.config, max(0, found.needed - planned)
        layout, stored = plan.known_layout(config)
        assert layout is not None
        subject = ModelSize(layout, trained(layout, config.lora), known.get("labelled", config.data.max_length), stored)

        def fits(changed: Config, cost: Memory) -> bool:
            if changed == config or (not on_gpu and changed.cluster != config.cluster):
                return False  # more ranks share the same main memory
            return (cost.peak if on_gpu else cost.host_peak) + error <= found.room

        machine = plan.planned_for(config, hardware.detect())
        change = cheapest(config, machine, lambda changed: memory(changed, subject, on_gpu), fits)
        if change is None:
            return "a smaller model or more memory: no change of batch, recomputation, quant, zero or length would do"
        peak = (change.peak if on_gpu else change.host_peak) + error
        told = f"{' '.join(change.overrides)} (about {size(peak)} a rank then)"
        halves = config.train.micro_batch_size > 1 and not config.train.auto_micro_batch
        return f"{told}, or train.auto_micro_batch=true, which halves the micro-batch by itself" if halves else told


def is_one(error: BaseException) -> bool:
    """Whether an error is an allocation that failed."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(words in str(error).lower() for words in WORDS)


def phase_of(error: BaseException) -> str:
    """Where it was raised, as its traceback has it."""
    frames = [(f.filename, f.name) for link in _chain(error) for f in traceback.extract_tb(link.__traceback__)]
    for (file, function), words in PHASES.items():
        if any(name == function and path.endswith(file) for path, name in frames):
            return words
    return "outside of the training"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _asked(said: str) -> int:
    """Bytes that an error says were asked for."""
    if plain := re.search(r"tried to allocate (\d+) bytes", said):
        return int(plain[1])
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    found = re.search(r"Tried to allocate ([\d.]+) (KiB|MiB|GiB)", said)
    return round(float(found[1]) * units[found[2]]) if found else 0


def _bytes(tensors: Iterable[Any], seen: set[int]) -> int:
    """Bytes of tensors on the device that trains, each storage once; of a parameter under ZeRO-3, its slice."""
    total = 0
    for tensor in tensors:
        state = getattr(tensor, "quant_state", None)
        states = [state, getattr(state, "state2", None)]
        constants = [x for s in states if s is not None for x in vars(s).values() if torch.is_tensor(x)]
        for part in (getattr(tensor, "ds_tensor", tensor), *constants):
            here = part.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
            storage = part.untyped_storage()
            if here and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
    return total


def _states(engine: Any) -> Iterator[torch.Tensor]:
    """Adam's moments and fp32 copies."""
    if not hasattr(engine, "basic_optimizer"):
        return
    for state in engine.basic_optimizer.state.values():
        yield from (value for value in state.values() if torch.is_tensor(value))
    for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat", "fp32_groups_flat_partition"):
        yield from getattr(engine.optimizer, name, ())


def _left() -> tuple[int, str]:
    """Bytes of main memory that this process may still take, and what says so."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    lefts = [(psutil.virtual_memory().available, f"of the machine's {size(psutil.virtual_memory().total)}")]
    for limit, field, option in ((resource.RLIMIT_AS, "VmSize", "v"), (resource.RLIMIT_DATA, "VmData", "d")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            left = soft - int(status[field].split()[0]) * 1024
            lefts.append((left, f"with the limit of a process (ulimit -{option}) at {size(soft)}"))
    group = Path("/sys/fs/cgroup")
    for most, now in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        if (group / most).exists() and (text := (group / most).read_text().strip()).isdigit():
            left = int(text) - int((group / now).read_text())
            lefts.append((left, f"with the limit of its control group at {size(int(text))}"))
    return max(0, min(lefts)[0]), min(lefts)[1]


def _wrong(planned: dict[str, int], found: Found) -> str:
    """Which part the plan had too little for, or that it was right."""
    total = sum(planned.values())
    have = {name: sum(planned[part] for part in parts) for name, parts in GROUPS.items()}
    taken = {**found.parts, PASSES: found.parts[PASSES] + found.asked}
    listed = ", ".join(f"{name} {size(taken[name])} of {size(have[name])}" for name in GROUPS)
    line = (
        f"the plan had {size(total)} a rank ({listed}, the process {size(found.base)} of {size(planned['overhead'])})"
    )
    over = {name: taken[name] - have[name] for name in GROUPS} | {"the process": found.base - planned["overhead"]}
    worst = max(over, key=lambda name: over[name])
    if over[worst] > max(0.05 * total, 64 << 20):
        return f"{line}: it was wrong about {worst}, by {size(over[worst])}"
    if total > found.room:
        return f"{line}: no part was larger than planned, and the plan was more than there was"
    return f"{line}: no part was larger than planned, but there was less memory than it counted on"
