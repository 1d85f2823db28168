"""Explains an out-of-memory error of a rank: the phase, the part of the plan that was exceeded, and overrides to try."""

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
from hydraft.errors import OutOfMemory, Phase
from hydraft.models.load import trainable
from hydraft.plan import plan
from hydraft.plan.memory import DRIVER, Memory, memory
from hydraft.plan.memory_parts import size
from hydraft.plan.model_size import ModelSize
from hydraft.plan.parameters import trained_in
from hydraft.plan.suggest import cheapest
from hydraft.system import hardware

WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "alloc_failed")
"""Parts of the error messages of torch, CUDA's libraries and the system."""

PHASES = {  # from a frame of the traceback (end of the file name, function) to the phase; the first match counts
    ("deepspeed/runtime/engine.py", "step"): Phase.optimizer_step,
    ("hydraft/training/pack/engine.py", "_step"): Phase.optimizer_step,
    ("accelerate/accelerator.py", "backward"): Phase.backward,
    ("hydraft/training/trainer.py", "compute_loss"): Phase.forward,
    ("hydraft/evaluation/evaluator.py", "evaluate"): Phase.evaluation,
    ("hydraft/checkpoint/weights.py", "save"): Phase.saving,
    ("hydraft/training/trainer.py", "_prepare_for_training"): Phase.optimizer_setup,
    ("hydraft/models/load.py", "load_trainable"): Phase.model_loading,
    ("hydraft/training/pack/base.py", "model"): Phase.model_loading,
    ("hydraft/data/cache.py", "ready"): Phase.tokenization,
}
GROUPS = {
    "weights": ("weights",),
    "adapter": ("adapter",),
    "optimizer": ("optimizer",),
    "activations, logits, gradients and buffers": ("activations", "logits", "cache", "gradients", "buffers"),
}
"""Parts of the plan that can be measured separately in a process."""

PASSES = list(GROUPS)[-1]


@dataclass(frozen=True)
class Usage:
    """Bytes of this rank, on its GPU or in main memory, when the allocation failed."""

    parts: dict[str, int]
    """Keys are those of ``GROUPS``."""
    base: int
    """Memory of the process before the model was loaded, or of the driver."""
    requested: int
    """The failed allocation; 0 if the error does not state its size."""
    available: int
    """All memory that this rank could use."""
    limit: str
    """What limits it, as text."""

    @property
    def needed(self) -> int:
        """The memory that would have been sufficient so far."""
        return self.base + sum(self.parts.values()) + self.requested


class OutOfMemoryHandler:
    """A context manager that raises ``OutOfMemory`` if an allocation fails inside it."""

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
        failed = next((link for link in _chain(error) if is_out_of_memory(link)), None)
        if not isinstance(error, Exception) or failed is None:
            return
        phase = phase_of(error)
        try:
            found = self.measure(str(failed))
            for link in _chain(error):
                traceback.clear_frames(link.__traceback__)  # frees the tensors of the pass
            message, advice = self.explain(phase, found)
        except Exception as another:  # the cause must be reported whatever happens here
            text = " ".join(str(failed).split())[:200]
            message, advice = f"{phase.value}: {text} (memory usage is unknown: {another!r})", None
        raise OutOfMemory(message, phase, advice) from error

    def measure(self, message: str) -> Usage:
        """The current usage; ``message`` is that of the error."""
        model = self.model
        learned = {} if model is None else trainable(model)
        held = [] if model is None else [*model.parameters(), *model.buffers()]
        names = {id(parameter) for parameter in learned.values()}
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
            available, limit = total - others, f"of the GPU's {size(total)}"
            if others > DRIVER:
                limit += f" (other processes use {size(others)} of it)"
        else:
            used, base = psutil.Process().memory_info().rss - self.base, self.base
            remaining, limit = _remaining()
            available = used + base + remaining
        known = {"weights": weights, "adapter": adapter, "optimizer": optimizer}
        parts = {**known, PASSES: max(0, used - sum(known.values()))}
        return Usage(parts, base, _requested(message), available, limit)

    def explain(self, phase: Phase, found: Usage) -> tuple[str, str | None]:
        """One line with the requested size, the memory in use, and what was planned; and the overrides to try."""
        requested = f"{size(found.requested)} more" if found.requested else "more"
        line = f"{phase.value}: {requested} did not fit beside {size(found.needed - found.requested)}, {found.limit}"
        on_gpu, file = torch.cuda.is_available(), self.folder / "plan.json"
        known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        if not known.get("cost"):
            advice = "a smaller train.micro_batch_size or data.max_length"
            return f"{line}; the plan has no estimate of this model's memory", advice
        moment = {Phase.model_loading: "loading", Phase.evaluation: "scoring"}.get(phase, "training")
        planned = known["cost"]["memory"][moment if on_gpu else f"host_{moment}"]
        line += f"; {_wrong(planned, found)}"
        return line, self._change(known, found, sum(planned.values()), on_gpu)

    def _change(self, known: dict[str, Any], found: Usage, planned: int, on_gpu: bool) -> str:
        """The cheapest change with which the run fits, by the plan plus the excess that was measured."""
        config, error = self.config, max(0, found.needed - planned)
        layout, stored = plan.known_layout(config)
        assert layout is not None
        subject = ModelSize(layout, trained_in(layout, config), known.get("labelled", config.data.max_length), stored)

        def fits(changed: Config, cost: Memory) -> bool:
            if changed == config or (not on_gpu and changed.cluster != config.cluster):
                return False  # more ranks share the same main memory
            return (cost.peak if on_gpu else cost.host_peak) + error <= found.available

        machine = plan.planned_for(config, hardware.detect())
        change = cheapest(config, machine, lambda changed: memory(changed, subject, on_gpu), fits)
        if change is None:
            return (
                "a smaller model or more memory: no change of batch, recomputation, quant, zero or length is sufficient"
            )
        peak = (change.peak if on_gpu else change.host_peak) + error
        overrides = f"{' '.join(change.overrides)} (then about {size(peak)} a rank)"
        halves = config.train.micro_batch_size > 1 and not config.train.auto_micro_batch
        return (
            f"{overrides}, or train.auto_micro_batch=true, which halves the micro-batch automatically"
            if halves
            else overrides
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is an allocation that failed."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(words in str(error).lower() for words in WORDS)


def phase_of(error: BaseException) -> Phase:
    """What the rank was doing, from the traceback of ``error``."""
    frames = [(f.filename, f.name) for link in _chain(error) for f in traceback.extract_tb(link.__traceback__)]
    for (file, function), phase in PHASES.items():
        if any(name == function and path.endswith(file) for path, name in frames):
            return phase
    return Phase.other


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _requested(message: str) -> int:
    """The size of the failed allocation in an error message."""
    if plain := re.search(r"tried to allocate (\d+) bytes", message):
        return int(plain[1])
    units = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    found = re.search(r"Tried to allocate ([\d.]+) (KiB|MiB|GiB)", message)
    return round(float(found[1]) * units[found[2]]) if found else 0


def _bytes(tensors: Iterable[Any], seen: set[int]) -> int:
    """Bytes of tensors on the training device, each storage counted once; under ZeRO-3, of a parameter's shard."""
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


def _remaining() -> tuple[int, str]:
    """Bytes of main memory that this process may still allocate, and the limit that applies."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    limits = [(psutil.virtual_memory().available, f"of the machine's {size(psutil.virtual_memory().total)}")]
    for limit, field, option in ((resource.RLIMIT_AS, "VmSize", "v"), (resource.RLIMIT_DATA, "VmData", "d")):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY:
            remaining = soft - int(status[field].split()[0]) * 1024
            limits.append((remaining, f"with the limit of a process (ulimit -{option}) at {size(soft)}"))
    group = Path("/sys/fs/cgroup")
    for most, now in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        if (group / most).exists() and (text := (group / most).read_text().strip()).isdigit():
            remaining = int(text) - int((group / now).read_text())
            limits.append((remaining, f"with the limit of its control group at {size(int(text))}"))
    return max(0, min(limits)[0]), min(limits)[1]


def _wrong(planned: dict[str, int], found: Usage) -> str:
    """Which part exceeded the plan, or that none did."""
    total = sum(planned.values())
    have = {name: sum(planned[part] for part in parts) for name, parts in GROUPS.items()}
    taken = {**found.parts, PASSES: found.parts[PASSES] + found.requested}
    listed = ", ".join(f"{name} {size(taken[name])} of {size(have[name])}" for name in GROUPS)
    line = f"planned: {size(total)} a rank ({listed}, the process {size(found.base)} of {size(planned['overhead'])})"
    over = {name: taken[name] - have[name] for name in GROUPS} | {"the process": found.base - planned["overhead"]}
    worst = max(over, key=lambda name: over[name])
    if over[worst] > max(0.05 * total, 64 << 20):
        return f"{line}: {worst} exceeded the plan by {size(over[worst])}"
    if total > found.available:
        return f"{line}: no part exceeded the plan, but the plan exceeds the available memory"
    return f"{line}: no part exceeded the plan, but less memory was available than planned with"
