"""A run to transformers' TrainingArguments and Trainer, over a DeepSpeed engine."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import psutil
import torch
import torch.distributed as dist
from deepspeed.runtime.utils import clip_grad_norm_
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase, Trainer, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from hydraft.checkpoint import training_state
from hydraft.config.choices import Offload, Precision
from hydraft.config.schema import Config
from hydraft.data.batch import EpochOrder, Examples, collator
from hydraft.models.load import trainable
from hydraft.training.zero import deepspeed_config

SCALE_AT_FLOOR = "loss scale already at minimum"
"""What DeepSpeed raises with when gradients overflow at the smallest scale (runtime/fp16/loss_scaler.py)."""

GPU_BACKENDS = "cpu:gloo,cuda:nccl"
"""What carries tensors that lie on a card, and those in main memory: NCCL alone refuses the latter, such as weights before
DeepSpeed has moved the model. Objects and barriers then go by gloo, and need no card to be idle."""

WINDOW = 16
"""Global batches over which records of like length are brought together."""


def training_arguments(config: Config, folder: Path) -> TrainingArguments:
    """The Trainer's settings. Making them starts the process group, and must come before the model is loaded."""
    train = config.train
    on_cpu = not torch.cuda.is_available()
    # DeepSpeed's own communicator must know the group: zero.Init counts ranks with it while a model is still loading.
    deepspeed.init_distributed(dist_backend="gloo" if on_cpu else GPU_BACKENDS, auto_mpi_discovery=False)
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        deepspeed=deepspeed_config(config),
        use_cpu=on_cpu,
        bf16=train.precision is Precision.bf16,
        fp16=train.precision is Precision.fp16,
        num_train_epochs=train.epochs,
        max_steps=train.max_steps or -1,
        per_device_train_batch_size=train.micro_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.scheduler.value,
        warmup_steps=train.warmup_ratio,  # below 1 it is a share of all steps
        weight_decay=train.weight_decay,
        adam_beta1=train.betas[0],
        adam_beta2=train.betas[1],
        adam_epsilon=train.eps,
        max_grad_norm=train.max_grad_norm,
        optim="adamw_torch_fused",  # bench/optimizer.py
        gradient_checkpointing=train.recomputes,
        gradient_checkpointing_kwargs={"use_reentrant": False} if train.recomputes else None,
        average_tokens_across_devices=True,  # every trained token of the global batch weighs the same
        logging_steps=train.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would hide a sick run
        save_strategy="no",  # checkpoint.py saves
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        seed=config.seed,
    )


@dataclass(frozen=True)
class Start:
    """A checkpoint to go on from."""

    folder: Path
    """Rank 0 sees it; the others need not."""
    step: int
    """Optimizer steps that were made."""
    adam_step: int
    """Steps that Adam has counted."""
    schedule_step: int
    """Steps that the learning rate has made: fp16 leaves out those whose gradients overflowed."""
    loss_scale: dict[str, float]
    """See ``state.loss_scale``."""


def schedule_step(scheduler: Any) -> int:
    """Steps that a schedule has made."""
    return int(getattr(scheduler, "scheduler", scheduler).last_epoch)


def memory_bytes(device: torch.device) -> int:
    """Of this rank: the card's peak with CUDA, otherwise the process's resident memory."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else int(psutil.Process().memory_info().rss)


def _advance(scheduler: Any, step: int) -> None:
    """Set a schedule to where it is after ``step`` steps; its length may be another than when they were made."""
    scheduler = getattr(scheduler, "scheduler", scheduler)
    scheduler.last_epoch, scheduler._step_count = step, step + 1
    rates = [base * rate(step) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


class RunTrainer(Trainer):
    """The Trainer with our order of records, DeepSpeed's CPU Adam where state is offloaded, and a count of tokens."""

    def __init__(
        self,
        config: Config,
        model: torch.nn.Module,
        examples: Examples,
        lengths: list[int],
        tokenizer: PreTrainedTokenizerBase,
        start: Start | None = None,
        **rest: Any,
    ) -> None:
        """``lengths``: tokens of each item of ``examples``. ``start``: the checkpoint to go on from."""
        self.config = config
        self.lengths = lengths
        self.start = start
        self.parameters = trainable(model)
        """What is trained, by name."""
        self.on_save: Callable[[RunTrainer], None] = lambda trainer: None
        """Called on every rank when a checkpoint is due, after the step has been logged."""
        self.tokens = 0
        """Tokens this rank has taken through the model, padding apart."""
        self.losses: list[torch.Tensor] = []
        """Of this rank's micro-batches since ``health`` looked; their sum's mean over the ranks is the step's."""
        self.scale_at_floor = False
        """Whether fp16's loss scale can fall no further, and gradients overflow still."""
        self._logged_before = 0
        super().__init__(
            model=model,
            train_dataset=examples,
            processing_class=tokenizer,
            data_collator=collator(config.data, int(tokenizer.pad_token_id), config.kernels.kind),
            **rest,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        c, batch = self.config, self.config.global_batch_size
        lengths = self.lengths if c.data.group_by_length else None
        multiple, window = c.train.micro_batch_size * c.world_size, WINDOW * batch
        self.order = EpochOrder(
            len(self.lengths), multiple, c.seed, c.data.shuffle, lengths, window, batch, c.train.pass_over
        )
        return self.order

    def _run_epoch(self, *args: Any, **named: Any) -> None:
        self.order.begin(named["epoch"])  # wrappers that skip what was trained before a resume do not pass it on
        super()._run_epoch(*args, **named)  # type: ignore[no-untyped-call]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """torch's AdamW, or DeepSpeed's CPU one over the same parameter groups."""
        if self.config.zero.offload_optimizer is Offload.none:
            return super().create_optimizer(model)
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        train = self.config.train
        assert self.model is not None
        decayed = set(self.get_decay_parameter_names(self.model))
        trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in trained if name in decayed], "weight_decay": train.weight_decay},
            {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
        ]
        self.optimizer = DeepSpeedCPUAdam(
            [group for group in groups if group["params"]],
            lr=train.learning_rate,
            betas=tuple(train.betas),
            eps=train.eps,
            adamw_mode=True,
        )
        return self.optimizer

    def run(self) -> TrainOutput:
        """Train, from the start or from the checkpoint."""
        if self.start is None:
            output = self.train()
        else:
            with (
                tempfile.TemporaryDirectory() as folder
            ):  # the Trainer looks for a file of its own, and we tell it all else
                TrainerState().save_to_json(str(Path(folder) / "trainer_state.json"))
                output = self.train(resume_from_checkpoint=folder)
        return output._replace(training_loss=output.training_loss * self._share(0, self.state.global_step))

    def _init_training_state(
        self, max_steps: int, steps_an_epoch: int, epochs: int, resumed: Any, trial: Any
    ) -> tuple[int, int]:
        """Where in the data to begin: epochs that are over, and micro-batches of the next one."""
        super()._init_training_state(max_steps, steps_an_epoch, epochs, None, trial)
        if self.start is None:
            return 0, 0
        self.state.global_step, self.state.epoch = self.start.step, self.start.step / steps_an_epoch
        if self.start.step >= max_steps:  # nothing is left but to score and to save
            return epochs, 0
        whole, rest = divmod(self.start.step, steps_an_epoch)
        return whole, rest * self.args.gradient_accumulation_steps

    def _load_rng_state(self, checkpoint: Any) -> None:
        assert self.start is not None
        training_state.load_random(self.start.folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.on_save(self)

    def _prepare_for_training(self, max_steps: int, loader: Any, resumed: Any) -> Any:
        engine, loader = super()._prepare_for_training(max_steps, loader, None)  # type: ignore[no-untyped-call]
        training_state.begin(engine)
        if self.start is not None:
            training_state.load_optimizer(engine, self.parameters, self.start.folder, self.start.adam_step)
            training_state.set_loss_scale(engine, self.start.loss_scale)
            _advance(self.lr_scheduler, self.start.schedule_step)

        def clip() -> None:  # DeepSpeed clips here at stage 0 in fp32, and forgets the norm that it found
            bound = engine.gradient_clipping() or math.inf
            engine.optimizer._global_grad_norm = float(
                clip_grad_norm_(engine.module.parameters(), bound, mpu=engine.mpu)
            )

        engine.clip_fp32_gradients = clip
        if (
            engine.optimizer is engine.basic_optimizer and not engine.gradient_clipping()
        ):  # it would not ask for the norm
            engine.optimizer.register_step_pre_hook(lambda *_: clip())
        return engine, loader

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """The Trainer's, counted; in a step that is passed over nothing is done, and only the schedule moves on."""
        if self.order.passes_over(self.state.global_step + 1):
            if hasattr(self.model_wrapped.optimizer, "overflow"):
                self.model_wrapped.optimizer.overflow = False  # of the step before, which would hold the schedule
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

    def all_tokens(self) -> int:
        """Tokens of all ranks so far; every rank must ask."""
        count = torch.tensor([self.tokens], device=self.args.device)
        dist.all_reduce(count)
        return int(count)

    def _share(self, after: int, to: int) -> float:
        """By what a mean over the steps from ``after`` to ``to`` grows where those that were passed over do not count."""
        trained = sum(not self.order.passes_over(step) for step in range(after + 1, to + 1))
        return (to - after) / trained if trained else 1.0

    def _maybe_log_save_evaluate(self, *args: Any, **named: Any) -> None:
        self._logged_before = self._globalstep_last_logged  # the Trainer moves it on before it calls ``log``
        super()._maybe_log_save_evaluate(*args, **named)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's line, with the tokens of all ranks added; no line of steps that were all passed over."""
        step = self.state.global_step
        steps = range(self._logged_before + 1, step + 1)
        if "loss" in logs and self.config.train.pass_over:
            if all(map(self.order.passes_over, steps)):
                return
            logs = {**logs, "loss": logs["loss"] * self._share(self._logged_before, step)}
            if self.order.passes_over(step):
                logs.pop("grad_norm", None)  # of another step
        mine = torch.zeros(dist.get_world_size(), 2, dtype=torch.int64, device=self.args.device)  # (ranks, 2)
        mine[dist.get_rank()] = torch.tensor([self.tokens, memory_bytes(self.args.device)])
        dist.all_reduce(mine)
        ranks = mine.tolist()
        line: dict[str, Any] = {**logs, "tokens": sum(tokens for tokens, _ in ranks), "ranks": ranks}
        super().log(line, start_time)
