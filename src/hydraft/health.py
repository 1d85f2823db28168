"""Whether a run is sick: its loss and gradient norm, looked at after every optimizer step, on all ranks together.

A step is sick when its loss or the gradient norm is no finite number, when the loss is above ``train.loss_spike`` times the
highest of the last ``WINDOW`` steps, or when the norm has been exactly 0 for ``train.zero_grad_steps`` steps. The highest, and not
the median, since the losses of small batches have a long tail: over 200 healthy steps in batches of 1 to 8 the worst was 1.6 times
the highest, but 17 times the median, and 9 standard deviations above the mean (``bench/spikes.py``). Before there are ``FEWEST``
steps the bound is that often the loss of a guess among all tokens, ln V.

An fp16 step that DeepSpeed's loss scaler skips is none of this, until its scale can fall no further.
"""

import math
from collections import deque
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydraft import rundir
from hydraft.choices import OnDivergence, Precision
from hydraft.config import Config
from hydraft.data import places
from hydraft.reporter import Reporter
from hydraft.trainer import RunTrainer

WINDOW, FEWEST = 64, 16
"""Steps whose losses are remembered, and how many it takes to know what is usual."""


class Diverged(Exception):
    """The run is sick, and all ranks stop; what there is to know of it stands in ``result.json``, under ``divergence``."""


class Health(TrainerCallback):
    """Looks at every step; every rank has one, and all come to the same verdict."""

    def __init__(self, config: Config, folder: Path, reporter: Reporter, trainer: RunTrainer) -> None:
        self.config = config
        self.folder = folder
        self.reporter = reporter
        self.trainer = trainer
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.zeros = 0
        """Steps in a row, up to now, with a gradient norm of 0."""
        self.ill = False
        """Whether the last step was sick."""
        self.moved = trainer.start is not None
        """Whether a step that was not sick has changed the weights."""

    def numbers(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"losses": list(self.losses), "zeros": self.zeros}

    def resume(self, numbers: dict[str, Any]) -> None:
        """Take up what ``numbers`` gave."""
        self.losses.extend(numbers.get("losses", []))
        self.zeros = numbers.get("zeros", 0)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Look at the step that has just been made; it is not counted, logged or saved yet.

        Raises:
            Diverged: it is sick, and ``train.on_divergence`` does not ignore that.
        """
        step, trainer = state.global_step + 1, self.trainer
        if trainer.order.passes_over(step):
            if dist.get_rank() == 0:
                self.reporter.write(step, {"passed_over": self._places(trainer.order.items(step))})
            return
        mine, trainer.losses = torch.stack(trainer.losses), []
        engine: Any = trainer.model_wrapped
        norm = engine.get_global_grad_norm()
        loss, broken, zero = agreed(mine, math.nan if norm is None else float(norm), norm is None)
        skipped = self.config.train.precision is Precision.fp16 and not engine.was_step_applied()
        self.zeros = self.zeros + 1 if zero else self.zeros if skipped else 0
        cause = self._cause(loss, None if skipped or not broken else norm)
        if math.isfinite(loss):
            self.losses.append(loss)
        if cause is not None:
            self._handle(step, cause, mine, loss)
        self.ill = cause is not None
        self.moved |= cause is None and not zero

    def _cause(self, loss: float, norm: Any) -> str | None:
        """What is wrong with a step, in words; ``norm`` is there if it is no finite number."""
        train = self.config.train
        if self.trainer.scale_at_floor:
            return "gradients overflow fp16 at the smallest loss scale"
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if norm is not None:
            return f"the gradient norm is {'not finite' if float(norm) < 0 else float(norm)}"  # DeepSpeed's sign for inf and NaN is -1
        if train.zero_grad_steps is not None and self.zeros >= train.zero_grad_steps:
            return f"the gradient norm has been 0 for {self.zeros} step{'s' if self.zeros > 1 else ''}"
        if train.loss_spike is None:
            return None
        usual = max(self.losses, default=0.0)
        if len(self.losses) >= FEWEST and loss > train.loss_spike * usual:
            return f"the loss is {loss:.4g}, {loss / usual:.3g} times the highest of the last {len(self.losses)} steps"
        model: Any = self.trainer.model
        guess = math.log(model.config.vocab_size)
        if len(self.losses) < FEWEST and loss > train.loss_spike * max(usual, guess):
            return f"the loss is {loss:.4g}, where guessing among all tokens has {guess:.3g}"
        return None

    def _handle(self, step: int, cause: str, mine: torch.Tensor, loss: float) -> None:
        shares: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, mine.tolist())
        told: list[Any] = [None]
        if dist.get_rank() == 0:
            told = [self._tell(step, cause, shares, loss)]
        if self.config.train.on_divergence is OnDivergence.ignore:
            return
        dist.broadcast_object_list(told, 0)  # rank 0 has written all down by then
        raise Diverged(told[0])

    def _tell(self, step: int, cause: str, shares: list[list[float]], loss: float) -> str:
        """Rank 0: write down what happened, and return it in a line with what to try."""
        items = self.trainer.order.items(step)
        found: dict[str, Any] = {"step": step, "cause": cause, "loss": loss, "samples": self._places(items)}
        broken = [(rank, j) for rank, share in enumerate(shares) for j, x in enumerate(share) if not math.isfinite(x)]
        found["micro_batches"] = [
            {"rank": rank, "micro_batch": j, "samples": self._places(self._micro_batch(items, rank, j))}
            for rank, j in broken
        ]
        found["pass_over"] = self._to_blame(step, cause)
        self.reporter.write(step, {"sick": cause, "loss": loss, "samples": found["samples"]})
        line = f"step {step}: {cause}, on {places.told(found['samples'])}"
        for known in found["micro_batches"][:2]:
            line += f" (rank {known['rank']}, micro-batch {known['micro_batch']}: {places.told(known['samples'])})"
        if self.config.train.on_divergence is OnDivergence.ignore:
            if not self.ill:
                self.reporter.screen.say(f"train.on_divergence=ignore: {line}")
            return line
        rundir.write_json(self.folder / "result.json", {"divergence": found})
        return f"{line}; try {_advice(self.config, cause, self.moved)}"

    def _to_blame(self, step: int, cause: str) -> list[int]:
        """The steps to pass over; none if nothing would be left to train.

        Where the steps just before were passed over and it did not help, the step that was made last is to blame as well.
        """
        first, order = step - (self.zeros - 1 if "norm has been 0" in cause else 0), self.trainer.order
        before = first - 1
        while before > 0 and order.passes_over(before):
            before -= 1
        steps = [*([before] if 0 < before < first - 1 else []), *range(first, step + 1)]
        gone = {item for passed in {*steps, *order.pass_over} for item in order.items(passed)}
        return steps if len(gone) < order.size else []

    def _micro_batch(self, items: list[int], rank: int, number: int) -> list[int]:
        size = self.config.train.micro_batch_size
        begin = (number * self.config.world_size + rank) * size
        return items[begin : begin + size]

    def _places(self, items: list[int]) -> places.Places:
        """Where items come from, in a packed run all records of their bins."""
        examples: Any = self.trainer.train_dataset
        members = [member for item in items for member in ([item] if examples.bins is None else examples.bins[item])]
        tokenizer: Any = self.trainer.processing_class
        return places.of_examples(members, len(examples.examples), self.config.data, self.config.seed, tokenizer)


def agreed(mine: torch.Tensor, norm: float, unknown: bool) -> tuple[float, bool, bool]:
    """Over all ranks: the step's loss, whether a gradient norm is no finite number, and whether it is 0.

    Args:
        mine: losses of this rank's micro-batches, ``(micro-batches,)``.
        unknown: the norm was not computed.
    """
    broken = not unknown and not (math.isfinite(norm) and norm >= 0)
    shared = torch.stack(
        [mine.sum().double(), mine.new_tensor(float(broken)).double(), mine.new_tensor(float(norm == 0)).double()]
    )
    world = dist.get_world_size()
    if world > 1:
        dist.all_reduce(shared)
    loss, bad, zeros = shared.tolist()
    return loss / world, bad > 0, zeros == world


def _advice(config: Config, cause: str, moved: bool) -> str:
    """Overrides to try, the likeliest first. ``moved``: whether the weights are other than they came."""
    train = config.train
    steady = {Precision.fp16: ["train.precision=bf16"], Precision.bf16: ["train.precision=fp32"]}.get(
        train.precision, []
    )
    if not moved and "norm has been 0" in cause:
        return ", ".join(["mode=preview (which tokens are trained?)", "lora.target_modules=[all-linear]", *steady])
    if not moved:
        return ", ".join([*steady, "mode=preview", "another model.path (its weights have not been changed yet)"])
    tries = [f"train.learning_rate={train.learning_rate / 10:g}"]
    tries += ["train.warmup_ratio=0.05"] if train.warmup_ratio == 0 else []
    if train.max_grad_norm == 0 or train.max_grad_norm > 0.3:
        tries.append(f"train.max_grad_norm={0.3 if train.max_grad_norm else 1}")
    passes = ["train.on_divergence=rewind (passes these records over)"]
    return ", ".join(tries + steady + (passes if train.on_divergence is OnDivergence.stop else []))
