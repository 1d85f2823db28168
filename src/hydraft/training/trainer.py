"""transformers' Trainer for a run, with a DeepSpeed engine."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
import torch
import torch.distributed as dist
from deepspeed.runtime.utils import clip_grad_norm_
from torch.utils.data import Sampler
from transformers import Trainer, TrainerState
from transformers.trainer_utils import TrainOutput

from hydraft.checkpoint import optimizer_state, random_state
from hydraft.checkpoint.training_state import TrainingState
from hydraft.config.schema import Config
from hydraft.data.batch import EpochOrder
from hydraft.models.load import trainable
from hydraft.system import temporary
from hydraft.training import muon, optimizer, schedule, smoothed
from hydraft.training.objectives.base import Objective

SCALE_AT_FLOOR = "loss scale already at minimum"
"""Part of DeepSpeed's error when gradients overflow at the smallest loss scale (runtime/fp16/loss_scaler.py)."""


@dataclass(frozen=True)
class Start:
    """The checkpoint that a run resumes from."""

    folder: Path
    """Only rank 0 needs access to it."""
    state: TrainingState


def memory_bytes(device: torch.device) -> int:
    """Memory of this rank: the peak on its GPU with CUDA, otherwise the resident memory of the process."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else int(psutil.Process().memory_info().rss)


def _keep_norm(engine: Any) -> None:
    """Have stage 0 in fp32 keep the gradient norm: DeepSpeed's own method for it does not."""

    def clip() -> None:
        bound = engine.gradient_clipping() or math.inf
        engine.optimizer._global_grad_norm = float(clip_grad_norm_(engine.module.parameters(), bound, mpu=engine.mpu))

    engine.clip_fp32_gradients = clip
    if engine.optimizer is engine.basic_optimizer and not engine.gradient_clipping():  # no norm would be computed
        engine.optimizer.register_step_pre_hook(lambda *_: clip())


class RunTrainer(Trainer):
    """The Trainer with an objective, the order of ``EpochOrder``, the optimizer of ``config.optimizer``, and a token count."""

    def __init__(
        self,
        config: Config,
        model: torch.nn.Module,
        objective: Objective,
        lengths: Sequence[int],
        start: Start | None = None,
        **rest: Any,
    ) -> None:
        """``lengths``: tokens of each item of the data set. ``rest``: arguments of ``transformers.Trainer``."""
        self.config = config
        self.objective: Objective = objective
        self.lengths = lengths
        self.start = start
        self.parameters = trainable(model)
        """The trained parameters, by name."""
        self.on_save: Callable[[RunTrainer], None] = lambda trainer: None
        """Called on every rank to save a checkpoint, after the step was logged."""
        self.tokens = 0
        """Tokens of this rank so far, without padding."""
        self.losses: list[torch.Tensor] = []
        """Losses of this rank's micro-batches in the current step. The loss of the step is the mean over the ranks of their sum."""
        self.measured = torch.zeros(len(objective.trained), 2, dtype=torch.float64)  # (measures, 2)
        """Of each measure of the objective: this rank's sum since the last logged step, and what its mean is taken over."""
        self.scale_at_floor = False
        """Whether gradients overflow at the smallest loss scale of fp16."""
        self._logged_before = 0
        self._last_step: dict[str, float] | None = None
        """Gradient norm and learning rate of the last step of this attempt; None before its first step."""
        self._operations_per_token: int | None = None
        super().__init__(model=model, **rest)
        if objective.trained:  # its loss is computed here, whatever arguments the model takes
            self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        config, data = self.config, self.config.data
        self.order = EpochOrder(
            self.lengths,
            round=config.train.micro_batch_size * config.world_size,
            batch=config.global_batch_size,
            seed=config.seed if data.shuffle else None,
            by_length=data.group_by_length,
            skipped=config.train.pass_over,
        )
        return self.order

    def _run_epoch(self, *args: Any, **named: Any) -> None:
        if self.control.should_training_stop and self.start is not None:  # it had ended early: no step is left
            random_state.load(self.start.folder)
            return
        self.order.begin(named["epoch"])  # the data loader that skips batches after a resume does not pass it on
        super()._run_epoch(*args, **named)  # type: ignore[no-untyped-call]

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Of a micro-batch, as the Trainer estimates them; it would count the model's parameters anew each time."""
        if self._operations_per_token is None:
            self._operations_per_token = super().floating_point_ops({"input_ids": torch.empty(1)})
        return self._operations_per_token * int(inputs["input_ids"].numel())

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """That of ``config.optimizer``."""
        if optimizer.is_trainers(self.config):
            return super().create_optimizer(model)
        assert self.model is not None
        self.optimizer = optimizer.build(self.config, self.model, set(self.get_decay_parameter_names(self.model)))
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """That of ``train.scheduler``."""
        warmup = self.args.get_warmup_steps(num_training_steps)
        inner: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        if not hasattr(inner, "defaults"):  # DeepSpeed's; transformers' polynomial schedule reads the rate there
            inner.defaults = {"lr": self.config.train.learning_rate}
        self.args.lr_scheduler_kwargs = schedule.scheduler_kwargs(self.config.train, num_training_steps, warmup)
        return super().create_scheduler(num_training_steps, optimizer)

    def run(self) -> TrainOutput:
        """Train from the beginning or from the checkpoint."""
        if self.start is None:
            output = self.train()
        else:
            with temporary.folder("resume") as folder:  # the Trainer needs a state file; the rest is restored below
                TrainerState().save_to_json(str(folder / "trainer_state.json"))
                output = self.train(resume_from_checkpoint=str(folder))
        return output._replace(training_loss=output.training_loss * self._share(0, self.state.global_step))

    def _init_training_state(
        self, max_steps: int, steps_an_epoch: int, epochs: int, resumed: Any, trial: Any
    ) -> tuple[int, int]:
        """Where to start in the data: finished epochs, and micro-batches of the next one."""
        super()._init_training_state(max_steps, steps_an_epoch, epochs, None, trial)
        if self.start is None:
            return 0, 0
        step = self.start.state.step
        self.state.global_step, self.state.epoch = step, step / steps_an_epoch
        if (
            step >= max_steps
        ):  # only evaluation and saving are left: the loop, which restores random states, does not run
            random_state.load(self.start.folder)
            return epochs, 0
        whole, rest = divmod(step, steps_an_epoch)
        return whole, rest * self.args.gradient_accumulation_steps

    def _load_rng_state(self, checkpoint: Any) -> None:
        assert self.start is not None
        random_state.load(self.start.folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.on_save(self)

    def _prepare_engine(self, max_steps: int, loader: Any) -> tuple[Any, Any]:
        engine, loader = super()._prepare_for_training(max_steps, loader, None)  # type: ignore[no-untyped-call]
        optimizer_state.undo_initial_step(engine)
        if isinstance(engine.basic_optimizer, muon.Muon):
            engine.basic_optimizer.shard(engine)
        _keep_norm(engine)
        return engine, loader

    def _prepare_for_training(self, max_steps: int, loader: Any, resumed: Any) -> Any:
        engine, loader = self._prepare_engine(max_steps, loader)
        if self.start is not None:
            state = self.start.state
            optimizer_state.load_optimizer(engine, self.parameters, self.start.folder, state.adam_step)
            optimizer_state.set_loss_scale(engine, state.loss_scale)
            schedule.advance(self.lr_scheduler, state.step if state.schedule_step is None else state.schedule_step)
        return engine, loader

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """As in the Trainer, and counts tokens. A skipped step does nothing; only the schedule advances."""
        if self.order.skips(self.state.global_step + 1):
            if hasattr(self.model_wrapped.optimizer, "overflow"):
                self.model_wrapped.optimizer.overflow = False  # of the previous step; it would stop the schedule
            return torch.zeros((), device=self.args.device)
        mask = inputs.get("attention_mask")
        self.tokens += inputs["input_ids"].numel() if mask is None else int(mask.sum())
        loss = torch.zeros((), device=self.args.device)
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except Exception as error:
            if SCALE_AT_FLOOR not in str(error):
                raise
            self.scale_at_floor = True
        self.losses.append(loss)
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """The objective's loss, multiplied by the number of ranks, over which DeepSpeed averages gradients."""
        assert not return_outputs, "evaluation/ evaluates"
        if self.label_smoother is None:
            found = self.objective.loss(model, inputs, num_items_in_batch)
        else:
            found = smoothed.loss(self.label_smoother, model, inputs, num_items_in_batch)
        if found.sums is not None:
            self.measured = self.measured.to(found.sums.device) + found.sums.detach()
        loss = found.value
        return loss if num_items_in_batch is None else loss * self.accelerator.num_processes

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        """What the loss of an optimizer step is averaged over, as the objective counts it, on all ranks."""
        if not batch_samples or not self.model_accepts_loss_kwargs:
            return None
        self.objective.begin_step(self.model_wrapped, batch_samples, device)
        count = torch.stack([self.objective.count(batch) for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(count).sum() if dist.get_world_size() > 1 else count

    def _measures(self) -> dict[str, float]:
        """The means of the objective's measures since the last logged step, over all ranks; without those that nothing was counted for."""
        names = self.objective.trained
        if not names:
            return {}
        sums = self.all_measured()
        self.measured = torch.zeros_like(self.measured)
        return {name: total / count for name, (total, count) in zip(names, sums, strict=True) if count}

    def all_measured(self) -> list[list[float]]:
        """``measured`` of all ranks together. Every rank must call it."""
        sums = self.measured.to(self.args.device, copy=True)
        if len(sums):
            dist.all_reduce(sums)
        found: list[list[float]] = sums.tolist()
        return found

    def all_tokens(self) -> int:
        """Tokens of all ranks so far. Every rank must call it."""
        count = torch.tensor([self.tokens], device=self.args.device)
        dist.all_reduce(count)
        return int(count)

    def _share(self, after: int, to: int) -> float:
        """The factor from a mean over the steps from ``after`` to ``to`` to the mean over those that were not skipped."""
        trained = sum(not self.order.skips(step) for step in range(after + 1, to + 1))
        return (to - after) / trained if trained else 1.0

    def _maybe_log_save_evaluate(self, *args: Any, **named: Any) -> None:
        found = {"grad_norm": args[1], "learning_rate": named.get("learning_rate")}
        self._last_step = {name: float(value) for name, value in found.items() if value is not None}
        self._logged_before = self._globalstep_last_logged  # the Trainer sets it before it calls ``log``
        super()._maybe_log_save_evaluate(*args, **named)

    def _finalize_training(self, *args: Any) -> TrainOutput:
        """As in the Trainer, with the steps since the last logged one logged too, and in the mean loss those of all ranks."""
        logged, rest = self._total_loss_scalar, self._tr_loss.clone()
        dist.all_reduce(rest)
        total = float(rest) / dist.get_world_size()
        self._log_last_steps(total)
        output = super()._finalize_training(*args)  # type: ignore[no-untyped-call]
        self._total_loss_scalar = logged  # a checkpoint that follows has the rest in ``loss_sums``
        return cast(TrainOutput, output._replace(training_loss=(logged + total) / max(1, self.state.global_step)))

    def _log_last_steps(self, total: float) -> None:
        """Log the steps since the last logged one, whose losses sum up to ``total``, and keep the sums: a run that resumes logs them anew."""
        steps = self.state.global_step - self._globalstep_last_logged
        if steps < 1 or self._last_step is None:
            return
        self._logged_before, measured = self._globalstep_last_logged, self.measured
        self.log({"loss": total / steps, **self._last_step})
        self.measured = measured

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in the Trainer, with the tokens of all ranks; does nothing if all steps were skipped."""
        step = self.state.global_step
        steps = range(self._logged_before + 1, step + 1)
        if "loss" in logs and self.config.train.pass_over:
            if all(map(self.order.skips, steps)):
                return
            logs = {**logs, "loss": logs["loss"] * self._share(self._logged_before, step)}
            if self.order.skips(step):
                logs.pop("grad_norm", None)  # of an earlier step
        mine = torch.zeros(dist.get_world_size(), 2, dtype=torch.int64, device=self.args.device)  # (ranks, 2)
        mine[dist.get_rank()] = torch.tensor([self.tokens, memory_bytes(self.args.device)])
        dist.all_reduce(mine)
        ranks = mine.tolist()
        line: dict[str, Any] = {**logs, "tokens": sum(tokens for tokens, _ in ranks), "ranks": ranks}
        if "loss" in logs:
            line["measures"] = self._measures()
        super().log(line, start_time)
