"""Whether a run is sick: its loss and gradient norm, looked at after every optimizer step, on all ranks together.

A step is sick when its loss or the gradient norm is no finite number, when the loss is above ``train.loss_spike`` times the
highest of the last ``WINDOW`` steps, or when the norm has been exactly 0 for ``train.zero_grad_steps`` steps. The highest, and not
the median, since the losses of small batches have a long tail: over 200 healthy steps in batches of 1 to 8 the worst was 1.6 times
the highest, but 17 times the median, and 9 standard deviations above the mean (``bench/spikes.py``). Before there are ``FEWEST``
steps the bound is that often the loss of a guess among all tokens, ln V.

An fp16 step that DeepSpeed's loss scaler skips is none of this, until its scale can fall no further.

On a CPU the numbers are there, and are looked at after the step. On a card to read them is to wait for all that the card has yet to
do; so they are summed over the ranks there, with the signals that ``stopper.py`` would ask for in a sum of its own, copied without
waiting, and read one step later. That changes no name and no record: what a step had is kept with its number. They are read at
once where more hangs on it than a step: before anything is logged, scored or saved, after the last step, and where steps are so
long (``LONG``) that the wait is nothing beside them and a step more would be much of the time that a signal leaves. All ranks read
at the same steps, since what decides that is the config or is in the sums.
"""

import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydraft.config.choices import OnDivergence, Precision
from hydraft.config.schema import Config
from hydraft.data import provenance
from hydraft.errors import Diverged
from hydraft.system import files
from hydraft.training.callbacks.early_stop import EarlyStopCallback
from hydraft.training.callbacks.logging import LoggingCallback
from hydraft.training.reductions import PendingNumbers, StepResult, reduce_later, reduce_now
from hydraft.training.trainer import RunTrainer

WINDOW, FEWEST = 64, 16
"""Steps whose losses are remembered, and how many it takes to know what is usual."""

LONG = 0.5
"""Seconds of a step that is looked at when it is made: the wait for a card is a thousandth of that."""


class DivergenceCallback(TrainerCallback):
    """Looks at every step; every rank has one, and all come to the same verdict."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        logging: LoggingCallback,
        trainer: RunTrainer,
        early_stop: EarlyStopCallback,
    ) -> None:
        self.config = config
        self.folder = folder
        self.logging = logging
        self.trainer = trainer
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.zeros = 0
        """Steps in a row, up to now, with a gradient norm of 0."""
        self.ill = False
        """Whether the last step was sick."""
        self.moved = trainer.start is not None
        """Whether a step that was not sick has changed the weights."""
        self.early_stop = early_stop
        self.waiting: tuple[StepResult, PendingNumbers] | None = None
        """The last step, if it has not been looked at."""
        self.begun: float | None = None
        """When the last step was made; None before there is one."""
        self.quick = False
        """Whether steps are shorter than ``LONG`` on every rank."""
        self.deferred = trainer.args.device.type == "cuda"
        """Whether a step may be looked at after the next one."""

    def state(self) -> dict[str, Any]:
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
        self.early_stop.shared = self.deferred and dist.get_world_size() > 1
        self.settle()
        if trainer.order.skips(step):
            if dist.get_rank() == 0:
                self.logging.write(step, {"passed_over": self._places(trainer.order.items(step))})
            if self.early_stop.shared:
                self.early_stop.stops()  # nothing was computed that could be waited for
            return
        mine, trainer.losses = torch.stack(trainer.losses), []
        engine: Any = trainer.model_wrapped
        norm = engine.get_global_grad_norm()
        skipped = self.config.train.precision is Precision.fp16 and not engine.was_step_applied()
        made = StepResult(step, mine, norm, skipped, trainer.scale_at_floor)
        if not self.deferred:
            self._judge(made, *reduce_now(mine, math.nan if norm is None else float(norm), norm is None))
            return
        self.waiting = made, self._share(made)
        if not self.quick or self._due(step, state):
            self.settle()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Nothing is written of a run whose last step has not been looked at."""
        self.settle()

    def settle(self) -> None:
        """Look at the last step, if that is still to be done; every rank must ask.

        Raises:
            Diverged: it is sick, and ``train.on_divergence`` does not ignore that.
        """
        if self.waiting is None:
            return
        (made, reading), self.waiting = self.waiting, None
        loss, bad, zeros, long, *asked = reading.read()
        world = dist.get_world_size()
        self.quick = not long
        if self.early_stop.shared:
            self.early_stop.receive(asked)
        self._judge(made, loss / world, bad > 0, zeros == world)

    def _due(self, step: int, state: TrainerState) -> bool:
        """Whether something is known to be logged, scored or saved after ``step``; what goes by a clock calls ``settle``."""
        train = self.config.train
        every = [train.log_every, train.save_every, train.eval_every]
        counted = any(isinstance(each, int) and step % each == 0 for each in every)
        return counted or step == 1 or step >= state.max_steps

    def _share(self, made: StepResult) -> PendingNumbers:
        """What ``settle`` reads: whether the step was long for any rank, what it had, and who was asked to leave."""
        now, before = time.perf_counter(), self.begun
        self.begun = now
        long = before is None or now - before > LONG
        return reduce_later(made, [float(long), *self.early_stop.counts()])

    def _judge(self, made: StepResult, loss: float, broken: bool, zero: bool) -> None:
        """Count a step by what all ranks had of it, and act if it is sick."""
        self.zeros = self.zeros + 1 if zero else self.zeros if made.skipped else 0
        cause = self._cause(made, loss, None if made.skipped or not broken else made.norm)
        if math.isfinite(loss):
            self.losses.append(loss)
        if cause is not None:
            self._handle(made.step, cause, made.losses, loss)
        self.ill = cause is not None
        self.moved |= cause is None and not zero

    def _cause(self, made: StepResult, loss: float, norm: Any) -> str | None:
        """What is wrong with a step, in words; ``norm`` is there if it is no finite number."""
        train = self.config.train
        if made.at_floor:
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
        report: list[Any] = [None]
        if dist.get_rank() == 0:
            report = [self._report(step, cause, shares, loss)]
        if self.config.train.on_divergence is OnDivergence.ignore:
            return
        dist.broadcast_object_list(report, 0)  # rank 0 has written metrics.jsonl and result.json by then
        raise Diverged(**report[0])

    def _report(self, step: int, cause: str, shares: list[list[float]], loss: float) -> dict[str, Any]:
        """Rank 0: write what happened to metrics.jsonl and result.json, and return the arguments of ``Diverged``."""
        items = self.trainer.order.items(step)
        found: dict[str, Any] = {"step": step, "cause": cause, "loss": loss, "samples": self._places(items)}
        broken = [(rank, j) for rank, share in enumerate(shares) for j, x in enumerate(share) if not math.isfinite(x)]
        found["micro_batches"] = [
            {"rank": rank, "micro_batch": j, "samples": self._places(self._micro_batch(items, rank, j))}
            for rank, j in broken
        ]
        found["pass_over"] = self._to_blame(step, cause)
        self.logging.write(step, {"sick": cause, "loss": loss, "samples": found["samples"]})
        line = f"step {step}: {cause}, on {provenance.describe(found['samples'])}"
        for known in found["micro_batches"][:2]:
            line += (
                f" (rank {known['rank']}, micro-batch {known['micro_batch']}: {provenance.describe(known['samples'])})"
            )
        if self.config.train.on_divergence is OnDivergence.ignore:
            if not self.ill:
                self.logging.screen.say(f"train.on_divergence=ignore: {line}")
            return {}
        files.write_json(self.folder / "result.json", {"divergence": found})
        return {
            "message": line,
            "step": step,
            "advice": _advice(self.config, cause, self.moved),
            "records": found["samples"],
            "skip_steps": found["pass_over"],
        }

    def _to_blame(self, step: int, cause: str) -> list[int]:
        """The steps to pass over; none if nothing would be left to train.

        Where the steps just before were passed over and it did not help, the step that was made last is to blame as well.
        """
        first, order = step - (self.zeros - 1 if "norm has been 0" in cause else 0), self.trainer.order
        before = first - 1
        while before > 0 and order.skips(before):
            before -= 1
        steps = [*([before] if 0 < before < first - 1 else []), *range(first, step + 1)]
        gone = {item for passed in {*steps, *order.skipped} for item in order.items(passed)}
        return steps if len(gone) < order.size else []

    def _micro_batch(self, items: list[int], rank: int, number: int) -> list[int]:
        size = self.config.train.micro_batch_size
        begin = (number * self.config.world_size + rank) * size
        return items[begin : begin + size]

    def _places(self, items: list[int]) -> provenance.Origins:
        """Where items come from, in a packed run all records of their bins."""
        examples: Any = self.trainer.train_dataset
        members = [member for item in items for member in examples.members(item)]
        tokenizer: Any = self.trainer.processing_class
        encoding = self.trainer.objective.encoding
        config, count = self.config, len(examples.examples)
        return provenance.of_examples(members, count, config.data, config.seed, tokenizer, encoding)


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
