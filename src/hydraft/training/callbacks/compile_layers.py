"""``train.compile=true``: the decoder layers compiled by torch (TorchInductor), and whether that pays, measured in the run itself.

The first steps run as they are and are timed; then all ranks compile at the same step, each layer in place, so that names and
files stay what they are. What compiling cost is what those steps took beyond eager ones; once enough compiled steps have been
timed, a line says from which step on it pays. Only steps run compiled: scoring and saving, whose shapes are others, run eager.
"""

import math
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
import torch._inductor.config as inductor
import torch.distributed as dist
import torch.fx.experimental._config as shapes
from torch._dynamo.utils import counters
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydraft.system import files
from hydraft.training.callbacks.logging import Reporter
from hydraft.training.trainer import RunTrainer

WARM, EAGER = 3, 11
"""Optimizer steps that warm up and are not timed, and those before layers are compiled."""
TIMED, LOOK = 8, 10
"""Compiled steps that it takes to know, and after how many the ranks compare what they have."""

CACHE = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True)
class Step:
    """An optimizer step of one rank, or of all."""

    seconds: float
    tokens: int
    graphs: int = 0
    """How many were compiled in it."""


@dataclass(frozen=True)
class Verdict:
    """What compiling took and what it gives."""

    lost: float
    """Seconds that steps in which something was compiled took beyond eager ones."""
    eager: float
    """Seconds of an eager step of mean size."""
    compiled: float
    compiling: int
    """Steps in which something was compiled."""

    @property
    def pays_after(self) -> int | None:
        """Steps, from the first, after which the run is ahead; None where it never is."""
        saved = self.eager - self.compiled
        return EAGER + self.compiling + math.ceil(max(0.0, self.lost) / saved) if saved > 0 else None

    def told(self, steps: int) -> str:
        """In a line, for a run of so many ``steps``."""
        line = f"compiled: {self.lost:.0f} s, then "
        if self.pays_after is None:
            return f"{line}{self.compiled / self.eager - 1:.0%} more a step: it never pays; use train.compile=false"
        less = f"{1 - self.compiled / self.eager:.0%} less a step"
        return f"{line}{less}; pays after {self.pays_after:,} steps, and this run has {steps:,}"


class Compiled(TrainerCallback):
    """Compiles and tells; every rank has one. It stands before other callbacks, so that what they do is not timed."""

    def __init__(self, model: torch.nn.Module, reporter: Reporter, device: torch.device) -> None:
        self.layers = decoder_layers(model)
        self.reporter = reporter
        self.device = device
        self.trainer: RunTrainer
        """Set before the training begins."""
        self.first = 0
        """Optimizer steps that were made before this attempt."""
        self.steps: list[Step] = []
        """Of this attempt and this rank, until all is told."""
        self.told = False
        self.began = 0.0
        self.before = (0, 0)
        """Tokens and graphs when the step began."""
        self.alive = ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Where this attempt begins."""
        self.first = state.global_step

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Compile, when it is time; what is compiled is traced as it first runs."""
        made = state.global_step - self.first
        if made >= EAGER:
            if made == EAGER:
                self._compile()
            torch.compiler.set_stance("default")
        if self.told:
            return
        if made >= EAGER:
            self.alive.enter_context(self.reporter.screen.heartbeat.while_working())
        self.before = self.trainer.tokens, _graphs()
        self.began = self._now()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Time it; every so often, see whether enough is known."""
        made = state.global_step - self.first
        if made > EAGER:
            torch.compiler.set_stance("force_eager")
        if self.told:
            return
        tokens, graphs = self.before
        self.steps.append(Step(self._now() - self.began, self.trainer.tokens - tokens, _graphs() - graphs))
        self.alive.close()
        if made > EAGER and (made - EAGER) % LOOK == 0:
            self._tell(state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """A run may be too short."""
        if self.told or not self.steps:
            return
        made = len(self.steps)
        if made <= EAGER:
            line = f"train.compile=true: nothing was compiled in {made} steps; the first {EAGER} run as they are"
        else:
            line = f"compiled: {made - EAGER} steps are too few to tell whether it pays"
        self.reporter.screen.say(line)

    def _compile(self) -> None:
        if (
            os.environ.get(CACHE, default_cache_dir()) == default_cache_dir()
        ):  # no person's own; a reboot empties torch's
            os.environ[CACHE] = str(files.cache_folder("inductor"))
        inductor.compile_threads = 1  # workers would take the cores that the steps after are timed on
        shapes.use_duck_shape = False  # that two lengths are the same by chance is nothing to compile for
        for layer in self.layers:
            layer.compile(dynamic=True)  # rows are of any length

    def _tell(self, state: TrainerState) -> None:
        steps = self._of_all_ranks()
        verdict = judged(steps)
        if verdict is None:
            return
        self.told, self.steps = True, []
        self.reporter.screen.say(verdict.told(state.max_steps - self.first))
        values = {
            "compile_seconds": verdict.lost,
            "compile_steps": verdict.compiling,
            "eager_step_seconds": verdict.eager,
            "compiled_step_seconds": verdict.compiled,
            "compile_pays_after": verdict.pays_after,
        }
        self.reporter.write(state.global_step, values)

    def _of_all_ranks(self) -> list[Step]:
        """The tokens and graphs of all ranks, in this rank's time: they wait for each other in each step."""
        counts = torch.tensor([[step.tokens, step.graphs] for step in self.steps], device=self.device)
        if dist.get_world_size() > 1:
            dist.all_reduce(counts)
        pairs = zip(self.steps, counts.tolist(), strict=True)
        return [Step(step.seconds, tokens, graphs) for step, (tokens, graphs) in pairs]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that a token passes through one after another."""
    lists = (module for name, module in model.named_modules() if name.rpartition(".")[2] == "layers")
    found = next((list(module) for module in lists if isinstance(module, torch.nn.ModuleList)), None)
    assert found, "every family that is trained here calls them so"
    return found


def judged(steps: list[Step]) -> Verdict | None:
    """What the steps of an attempt say; None as long as they are too few. The same on every rank, times apart."""
    eager = [step for step in steps[WARM:EAGER] if step.tokens]
    busy = [step for step in steps[EAGER:] if step.graphs]
    calm = [step for step in steps[EAGER:] if step.tokens and not step.graphs]
    if not eager or len(calm) < TIMED:
        return None
    before, after = (median(step.seconds / step.tokens for step in timed) for timed in (eager, calm))
    size = mean(step.tokens for step in eager + calm)
    lost = sum(step.seconds - before * step.tokens for step in busy)
    return Verdict(lost, before * size, after * size, len(busy))


def _graphs() -> int:
    """How many graphs this process has compiled so far."""
    return int(counters["stats"]["unique_graphs"])
