"""The callback that detects divergence: it checks loss and gradient norm after every optimizer step, over all ranks.

A step has diverged if its loss or gradient norm is not finite, if the loss is above ``train.loss_spike`` times the highest of the
last ``WINDOW`` steps, or if the norm has been exactly 0 for ``train.zero_grad_steps`` steps. The highest is used, not the median,
because the losses of small batches have a long tail: over 200 normal steps in batches of 1 to 8, the largest loss was 1.6 times the
highest before it, but 17 times the median, and 9 standard deviations above the mean (``bench/spikes.py``). Before there are
``FEWEST`` steps, the bound is at least ``train.loss_spike`` times ln V, the loss of guessing among all tokens. The loss of preferences
is near 0 for pairs that are told apart, and not for others: its bound is always at least ``train.loss_spike`` times that of no preference.

An fp16 step that DeepSpeed's loss scaler skips has not diverged, unless the loss scale is already the smallest.

On a CPU, a step is checked at once. On a GPU, reading the numbers waits until the GPU has finished all queued work. So they are
reduced over the ranks together with the signals of ``early_stop.py``, copied without waiting, and read one step later. The check
still applies to the step that the numbers belong to. They are read at once before anything is logged, evaluated or saved, after the
last step, and if steps are longer than ``LONG``: then the wait is short compared to a step, and one more step would use up much of
the time between a signal and the end. All ranks read at the same steps, since that depends on the config and on reduced numbers.
"""

import math
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hydraft.config.choices import OnDivergence, Precision
from hydraft.config.schema import Config
from hydraft.data import provenance
from hydraft.errors import Diverged
from hydraft.models import exchange
from hydraft.system import files
from hydraft.training.callbacks.early_stop import EarlyStopCallback
from hydraft.training.callbacks.logging import LoggingCallback
from hydraft.training.reductions import PendingNumbers, StepResult, reduce_later, reduce_now
from hydraft.training.trainer import RunTrainer

WINDOW, FEWEST = 64, 16
"""Steps whose losses are kept, and the number of steps from which on they are the reference."""

LONG = 0.5
"""Seconds of a step from which on it is checked at once. Waiting for a GPU takes about a thousandth of that."""


class Cause(NamedTuple):
    """Why a step has diverged."""

    text: str
    zero_gradients: bool = False
    """Whether it is the number of steps with a gradient norm of 0."""


class DivergenceCallback(TrainerCallback):
    """Checks every step. Every rank has one, and all decide the same."""

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
        """Consecutive steps, up to the last one, with a gradient norm of 0."""
        self.diverged = False
        """Whether the last step has diverged."""
        self.updated = trainer.start is not None
        """Whether a step has changed the weights without diverging."""
        self.early_stop = early_stop
        self.waiting: tuple[StepResult, PendingNumbers] | None = None
        """The last step, if it has not been checked."""
        self.last_time: float | None = None
        """The time of the last step; None before the first."""
        self.quick = False
        """Whether steps are shorter than ``LONG`` on every rank."""
        self.deferred = trainer.args.device.type == "cuda"
        """Whether a step may be checked after the next one."""

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint."""
        return {"losses": list(self.losses), "zeros": self.zeros}

    def resume(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.losses.extend(state.get("losses", []))
        self.zeros = state.get("zeros", 0)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any
    ) -> None:
        """Check the step, before it is counted, logged or saved.

        Raises:
            Diverged: a step has diverged, and ``train.on_divergence`` is not ``ignore``.
        """
        step, trainer = state.global_step + 1, self.trainer
        self.early_stop.shared = self.deferred and dist.get_world_size() > 1
        self.settle()
        if trainer.order.skips(step):
            if dist.get_rank() == 0:
                self.logging.write(step, {"passed_over": self._origins(trainer.order.items(step))})
            if self.early_stop.shared:
                self.early_stop.stops()  # nothing was computed, so nothing is waited for
            return
        losses, trainer.losses = torch.stack(trainer.losses), []
        engine: Any = trainer.model_wrapped
        norm = engine.get_global_grad_norm()
        skipped = self.config.train.precision is Precision.fp16 and not engine.was_step_applied()
        result = StepResult(step, losses, norm, skipped, trainer.scale_at_floor)
        if not self.deferred:
            self._check(result, *reduce_now(losses, math.nan if norm is None else float(norm), norm is None))
            return
        self.waiting = result, self._reduce(result)
        if not self.quick or self._due(step, state):
            self.settle()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        """Check the last step before results are written."""
        self.settle()

    def settle(self) -> None:
        """Check the last step, if that was deferred. Every rank must call it.

        Raises:
            Diverged: the step has diverged, and ``train.on_divergence`` is not ``ignore``.
        """
        if self.waiting is None:
            return
        (result, pending), self.waiting = self.waiting, None
        loss, bad, zeros, long, *signals = pending.read()
        world = dist.get_world_size()
        self.quick = not long
        if self.early_stop.shared:
            self.early_stop.receive(signals)
        self._check(result, loss / world, bad > 0, zeros == world)

    def _due(self, step: int, state: TrainerState) -> bool:
        """Whether ``step`` is followed by logging, evaluation or saving. What depends on a clock calls ``settle`` itself."""
        train = self.config.train
        every = [train.log_every, train.save_every, train.eval_every]
        counted = any(isinstance(each, int) and step % each == 0 for each in every)
        return counted or step == 1 or step >= state.max_steps

    def _reduce(self, result: StepResult) -> PendingNumbers:
        """What ``settle`` reads: the losses and norms, whether the step was long on any rank, and the received signals."""
        now, before = time.perf_counter(), self.last_time
        self.last_time = now
        long = before is None or now - before > LONG
        return reduce_later(result, [float(long), *self.early_stop.counts()])

    def _check(self, result: StepResult, loss: float, broken: bool, zero: bool) -> None:
        """Check a step by its values over all ranks, and act if it has diverged."""
        self.zeros = self.zeros + 1 if zero else self.zeros if result.skipped else 0
        cause = self._cause(result, loss, None if result.skipped or not broken else result.norm)
        if math.isfinite(loss):
            self.losses.append(loss)
        if cause is not None:
            self._handle(result.step, cause, result.losses, loss)
        self.diverged = cause is not None
        self.updated |= cause is None and not zero

    def _cause(self, result: StepResult, loss: float, norm: Any) -> Cause | None:
        """Why a step has diverged; None if it has not. ``norm``: the gradient norm if it is not finite, otherwise None."""
        train = self.config.train
        if result.at_floor:
            return Cause("gradients overflow fp16 at the smallest loss scale")
        if not math.isfinite(loss):
            return Cause(f"the loss is {loss}")
        if norm is not None:  # DeepSpeed returns -1 for a norm that is not finite
            return Cause(f"the gradient norm is {'not finite' if float(norm) < 0 else float(norm)}")
        if train.zero_grad_steps is not None and self.zeros >= train.zero_grad_steps:
            steps = f"{self.zeros} step{'s' if self.zeros > 1 else ''}"
            return Cause(f"the gradient norm has been 0 for {steps}", zero_gradients=True)
        if train.loss_spike is None:
            return None
        highest, objective, model = max(self.losses, default=0.0), self.trainer.objective, cast(Any, self.trainer.model)
        guess = objective.uninformed(model.config.vocab_size)
        enough = len(self.losses) >= FEWEST
        if loss <= train.loss_spike * (highest if enough and not objective.trained else max(highest, guess)):
            return None
        if enough:
            times = f"{loss / highest:.3g} times the highest of the last {len(self.losses)} steps"
            return Cause(f"the loss is {loss:.4g}, {times}")
        known = "no preference" if objective.trained else "guessing among all tokens"
        return Cause(f"the loss is {loss:.4g}; {known} gives {guess:.3g}")

    def _handle(self, step: int, cause: Cause, losses: torch.Tensor, loss: float) -> None:
        shares = exchange.all_gather(losses.tolist())
        report = self._report(step, cause, shares, loss) if dist.get_rank() == 0 else None
        if self.config.train.on_divergence is OnDivergence.ignore:
            return
        raise Diverged(**exchange.broadcast(report))  # rank 0 has written metrics.jsonl and result.json by then

    def _report(self, step: int, cause: Cause, shares: list[list[float]], loss: float) -> dict[str, Any]:
        """Rank 0: write what happened to metrics.jsonl and result.json, and return the arguments of ``Diverged``."""
        items = self.trainer.order.items(step)
        found: dict[str, Any] = {"step": step, "cause": cause.text, "loss": loss, "samples": self._origins(items)}
        broken = [(rank, j) for rank, share in enumerate(shares) for j, x in enumerate(share) if not math.isfinite(x)]
        found["micro_batches"] = [
            {"rank": rank, "micro_batch": j, "samples": self._origins(self._micro_batch(items, rank, j))}
            for rank, j in broken
        ]
        found["pass_over"] = self._steps_to_skip(step, cause)
        self.logging.write(step, {"sick": cause.text, "loss": loss, "samples": found["samples"]})
        line = f"step {step}: {cause.text}, on {provenance.describe(found['samples'])}"
        for known in found["micro_batches"][:2]:
            records = provenance.describe(known["samples"])
            line += f" (rank {known['rank']}, micro-batch {known['micro_batch']}: {records})"
        if self.config.train.on_divergence is OnDivergence.ignore:
            if not self.diverged:
                self.logging.screen.say(f"train.on_divergence=ignore: {line}")
            return {}
        files.write_json(self.folder / "result.json", {"divergence": found})
        return {
            "message": line,
            "step": step,
            "advice": _advice(self.config, cause, self.updated),
            "records": found["samples"],
            "skip_steps": found["pass_over"],
        }

    def _steps_to_skip(self, step: int, cause: Cause) -> list[int]:
        """The steps to skip after a rewind; empty if nothing would be left to train.

        If the steps just before are skipped already, the last step that was trained before them is skipped too.
        """
        first, order = step - (self.zeros - 1 if cause.zero_gradients else 0), self.trainer.order
        before = first - 1
        while before > 0 and order.skips(before):
            before -= 1
        steps = [*([before] if 0 < before < first - 1 else []), *range(first, step + 1)]
        removed = {item for skipped in {*steps, *order.skipped} for item in order.items(skipped)}
        return steps if len(removed) < order.size else []

    def _micro_batch(self, items: list[int], rank: int, number: int) -> list[int]:
        size = self.config.train.micro_batch_size
        begin = (number * self.config.world_size + rank) * size
        return items[begin : begin + size]

    def _origins(self, items: list[int]) -> provenance.Origins:
        """The origins of items; of a bin, those of all its records."""
        examples: Any = self.trainer.train_dataset
        members = [member for item in items for member in examples.members(item)]
        return provenance.of_examples(members, examples.examples)


def _advice(config: Config, cause: Cause, updated: bool) -> str:
    """Overrides to try, the most likely first. ``updated``: whether training has changed the weights."""
    train = config.train
    wider = {Precision.fp16: "bf16", Precision.bf16: "fp32"}.get(train.precision)
    precision = [] if wider is None else [f"train.precision={wider}"]
    if not updated and cause.zero_gradients:
        return ", ".join(["mode=preview (which tokens are trained?)", "lora.target_modules=[all-linear]", *precision])
    if not updated:
        return ", ".join([*precision, "mode=preview", "another model.path (its weights have not been changed yet)"])
    tries = [f"train.learning_rate={train.learning_rate / 10:g}"]
    tries += ["train.warmup_ratio=0.05"] if not train.warms_up else []
    if train.max_grad_norm == 0 or train.max_grad_norm > 0.3:
        tries.append(f"train.max_grad_norm={0.3 if train.max_grad_norm else 1}")
    skips = ["train.on_divergence=rewind (skips these records)"]
    return ", ".join(tries + precision + (skips if train.on_divergence is OnDivergence.stop else []))
