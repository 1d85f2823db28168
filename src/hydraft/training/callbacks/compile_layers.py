"""``train.compile=true``: the callback that compiles the decoder layers (TorchInductor) and measures whether that pays off.

The first steps run eagerly and are timed. Then all ranks compile at the same step, each layer in place, so that the names of
parameters do not change. The cost is the additional time of steps in which something is compiled. When enough compiled steps were
timed, a line reports from which step on compiling pays off. Evaluation and saving, which have other shapes, run eagerly.
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
from hydraft.training.callbacks.logging import LoggingCallback
from hydraft.training.trainer import RunTrainer

WARM, EAGER = 3, 11
"""Optimizer steps of the warm-up, which are not timed, and all steps before layers are compiled."""
TIMED, INTERVAL = 8, 10
"""Compiled steps that must be timed, and the steps between two comparisons over the ranks."""

CACHE = "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True)
class Step:
    """An optimizer step of one rank or of all."""

    seconds: float
    tokens: int
    graphs: int = 0
    """Graphs that were compiled during the step."""


@dataclass(frozen=True)
class Comparison:
    """The cost and the benefit of compiling."""

    lost: float
    """Seconds that steps in which something was compiled took longer than eager steps."""
    eager: float
    """Seconds of an eager step of average size."""
    compiled: float
    compiling: int
    """Steps in which something was compiled."""

    @property
    def pays_after(self) -> int | None:
        """The number of steps after which compiling has saved time; None if it never does."""
        saved = self.eager - self.compiled
        return EAGER + self.compiling + math.ceil(max(0.0, self.lost) / saved) if saved > 0 else None

    def describe(self, steps: int) -> str:
        """A line about a run of ``steps`` steps."""
        line = f"compiled: {self.lost:.0f} s, then "
        if self.pays_after is None:
            return f"{line}{self.compiled / self.eager - 1:.0%} more a step: it never pays off; use train.compile=false"
        less = f"{1 - self.compiled / self.eager:.0%} less a step"
        return f"{line}{less}; pays off after {self.pays_after:,} steps; this run has {steps:,}"


class CompileCallback(TrainerCallback):
    """Compiles the layers. Every rank has one. It must come before other callbacks, so that these are not timed."""

    def __init__(self, model: torch.nn.Module, logging: LoggingCallback, device: torch.device) -> None:
        self.layers = decoder_layers(model)
        self.logging = logging
        self.device = device
        self.trainer: RunTrainer
        """Set before the training begins."""
        self.first = 0
        """Optimizer steps before this attempt."""
        self.steps: list[Step] = []
        """The steps of this attempt on this rank, until the comparison is reported."""
        self.reported = False
        self.began = 0.0
        self.before = (0, 0)
        """Tokens and graphs at the start of the step."""
        self.beating = ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Remember the first step of this attempt."""
        self.first = state.global_step

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Compile after the eager steps. A layer is traced when it first runs."""
        made = state.global_step - self.first
        if made >= EAGER:
            if made == EAGER:
                self._compile()
            torch.compiler.set_stance("default")
        if self.reported:
            return
        if made >= EAGER:
            self.beating.enter_context(self.logging.screen.heartbeat.while_working())
        self.before = self.trainer.tokens, _graphs()
        self.began = self._now()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Time the step, and every ``INTERVAL`` steps compare."""
        made = state.global_step - self.first
        if made > EAGER:
            torch.compiler.set_stance("force_eager")
        if self.reported:
            return
        tokens, graphs = self.before
        self.steps.append(Step(self._now() - self.began, self.trainer.tokens - tokens, _graphs() - graphs))
        self.logging.exclude_from_speed(extra(self.steps))
        self.beating.close()
        if made > EAGER and (made - EAGER) % INTERVAL == 0:
            self._compare(state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Report if the run was too short for a comparison."""
        if self.reported or not self.steps:
            return
        made = len(self.steps)
        if made <= EAGER:
            line = f"train.compile=true: nothing was compiled in {made} steps; the first {EAGER} run eagerly"
        else:
            line = f"compiled: {made - EAGER} steps are too few to tell whether it pays off"
        self.logging.screen.say(line)

    def _compile(self) -> None:
        if (
            os.environ.get(CACHE, default_cache_dir()) == default_cache_dir()
        ):  # it is in /tmp, and the user has set no other
            os.environ[CACHE] = str(files.cache_folder("inductor"))
        inductor.compile_threads = 1  # workers would slow down the steps that are timed
        shapes.use_duck_shape = False  # two lengths that are equal by chance need no graph of their own
        for layer in self.layers:
            layer.compile(dynamic=True)  # rows have any length

    def _compare(self, state: TrainerState) -> None:
        steps = self._of_all_ranks()
        comparison = compare(steps)
        if comparison is None:
            return
        self.reported, self.steps = True, []
        self.logging.screen.say(comparison.describe(state.max_steps - self.first))
        values = {
            "compile_seconds": comparison.lost,
            "compile_steps": comparison.compiling,
            "eager_step_seconds": comparison.eager,
            "compiled_step_seconds": comparison.compiled,
            "compile_pays_after": comparison.pays_after,
        }
        self.logging.write(state.global_step, values)

    def _of_all_ranks(self) -> list[Step]:
        """The steps with tokens and graphs of all ranks, and the time of this rank: ranks wait for each other in each step."""
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
    """The decoder layers of a model."""
    lists = (module for name, module in model.named_modules() if name.rpartition(".")[2] == "layers")
    found = next((list(module) for module in lists if isinstance(module, torch.nn.ModuleList)), None)
    assert found, "all supported families have a module list named layers"
    return found


def compare(steps: list[Step]) -> Comparison | None:
    """Compare eager and compiled steps; None if there are too few. Only the times differ between ranks."""
    eager = [step for step in steps[WARM:EAGER] if step.tokens]
    compiling = [step for step in steps[EAGER:] if step.graphs]
    compiled = [step for step in steps[EAGER:] if step.tokens and not step.graphs]
    if not eager or len(compiled) < TIMED:
        return None
    before, after = (median(step.seconds / step.tokens for step in timed) for timed in (eager, compiled))
    size = mean(step.tokens for step in eager + compiled)
    lost = sum(step.seconds - before * step.tokens for step in compiling)
    return Comparison(lost, before * size, after * size, len(compiling))


def extra(steps: list[Step]) -> float:
    """Seconds that the last step took longer than an eager one of its size, if something was compiled in it; else 0."""
    eager = [step.seconds / step.tokens for step in steps[WARM:EAGER] if step.tokens]
    if not steps[-1].graphs or not eager:
        return 0.0
    return max(0.0, steps[-1].seconds - median(eager) * steps[-1].tokens)


def _graphs() -> int:
    """Graphs that this process has compiled so far."""
    return int(counters["stats"]["unique_graphs"])
