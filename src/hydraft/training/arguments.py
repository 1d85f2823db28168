"""transformers' TrainingArguments of a run; with them its process group starts."""

from pathlib import Path

import deepspeed
import torch
from transformers import TrainingArguments

from hydraft.config.choices import Precision
from hydraft.config.schema import Config
from hydraft.training import process_group, schedule
from hydraft.training.rendezvous import Rendezvous
from hydraft.training.zero import deepspeed_config

GPU_BACKENDS = "cpu:gloo,cuda:nccl"
"""The backends of the process group with GPUs. gloo is for tensors in main memory, which NCCL does not support (weights before
DeepSpeed moves the model), and for objects and barriers, which then do not wait for a GPU."""


def training_arguments(
    config: Config, folder: Path, rendezvous: Rendezvous | None = None, swap: Path | None = None
) -> TrainingArguments:
    """The Trainer's settings. Creating them starts the process group, and must happen before the model is loaded.

    ``rendezvous``: where the ranks find each other; None if this process is in a process group already. ``swap``: this rank's folder for
    what is kept on a disk.
    """
    train = config.train
    on_cpu = not torch.cuda.is_available()
    # DeepSpeed must know the process group while the model is loaded: zero.Init gets the number of ranks from it.
    deepspeed.init_distributed(
        dist_backend="gloo" if on_cpu else GPU_BACKENDS, auto_mpi_discovery=False, **process_group.joining(rendezvous)
    )
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        deepspeed=deepspeed_config(config, swap),
        use_cpu=on_cpu,
        bf16=train.precision is Precision.bf16,
        fp16=train.precision is Precision.fp16,
        num_train_epochs=train.epochs,
        max_steps=train.max_steps or -1,
        per_device_train_batch_size=train.micro_batch_size,
        gradient_accumulation_steps=train.gradient_accumulation_steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type=schedule.scheduler_type(train),
        warmup_steps=train.warmup_steps or train.warmup_ratio,  # a value below 1 is a share of all steps
        weight_decay=config.optimizer.weight_decay,
        adam_beta1=config.optimizer.betas[0],
        adam_beta2=config.optimizer.betas[1],
        adam_epsilon=config.optimizer.eps,
        neftune_noise_alpha=train.neftune_alpha,
        label_smoothing_factor=train.label_smoothing,
        max_grad_norm=train.max_grad_norm,
        optim="adamw_torch_fused",  # bench/optimizer.py
        gradient_checkpointing=train.recomputes,
        gradient_checkpointing_kwargs={"use_reentrant": False} if train.recomputes else None,
        average_tokens_across_devices=True,  # all trained tokens of a global batch have the same weight
        logging_steps=train.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would hide a diverged run
        save_strategy="no",  # callbacks/checkpoint.py saves
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        seed=config.seed,
    )
