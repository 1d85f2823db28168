"""Which jobs of a sweep can share a process and its frozen base: a pack. No torch."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from hydraft.config.choices import Init, Kernels, Launcher, Offload, Precision, TrackerKind
from hydraft.config.lora import LoraMethod
from hydraft.config.objective import ObjectiveKind
from hydraft.config.optimizer import OptimizerKind
from hydraft.config.schema import Config, saved
from hydraft.plan import preflight
from hydraft.plan.memory_parts import size
from hydraft.plan.pack import pack_memory
from hydraft.plan.preflight import Admitted
from hydraft.sweep.results import objective
from hydraft.sweep.slots import MEMORY_SHARE
from hydraft.system.source_tree import portable
from hydraft.training.pack import scheduler

FREE = (
    "resume", "lora", "tracker", "sweep",
    "train.epochs", "train.max_steps", "train.micro_batch_size", "train.gradient_accumulation_steps",
    "train.learning_rate", "train.scheduler", "train.warmup_ratio", "train.warmup_steps",
    "train.min_learning_rate", "train.decay_ratio", "train.decay_power", "optimizer",
    "train.max_grad_norm", "train.log_every", "train.eval_every", "train.eval_loss_only", "train.show_answers", "train.patience",
    "train.min_delta", "train.best_by", "train.keep", "train.save", "train.save_every", "train.save_minutes", "train.grace",
    "train.keep_last", "train.on_divergence", "train.loss_spike",
    "train.zero_grad_steps", "train.max_rewinds", "train.pass_over", "train.auto_micro_batch",
    "data.name", "data.train", "data.mix", "data.only", "data.format", "data.train_on", "data.eval", "data.eval_seed", "data.template",
    "data.packing", "data.group_by_length", "data.shuffle", "data.eval_limit", "data.task", "data.eval_max_new_tokens",
    "data.thinking", "data.columns", "data.labels", "data.on_bad_record", "data.benchmark", "data.benchmark_shots", "data.benchmark_limit", "data.benchmark_chat",
)  # fmt: skip
"""Sections and settings in which the members of a pack may differ, besides ``seed``. Any other one is the same for all of them, so a
new setting splits packs until it is listed here."""


def pack_key(config: Config) -> str | None:
    """What the jobs of one pack have in common, as a hash of their resolved ``config``; None for a job that runs alone."""
    if why_alone(config) is not None:
        return None
    # Random weights are drawn from the seed.
    free = FREE if config.model.init is Init.random else (*FREE, "seed")
    text = portable(saved(config, leave_out=free))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def why_alone(config: Config) -> str | None:
    """Why a job with this resolved ``config`` cannot share its process, in one line; None if it can."""
    train, zero, lora, cluster = config.train, config.zero, config.lora, config.cluster
    if config.world_size > 1:
        return f"it has {config.world_size} ranks, and a pack has one"
    if cluster.on_hosts or cluster.launcher is not Launcher.auto:
        return "its rank runs on another machine or under another launcher"
    if zero.stage == 3:
        return "zero.stage=3 shards the base"
    if (zero.offload_optimizer, zero.offload_param) != (Offload.none, Offload.none):
        return "zero.offload_optimizer and zero.offload_param need DeepSpeed's engine"
    if train.precision is Precision.fp16:
        return "train.precision=fp16 scales the loss, and each job by another factor"
    if train.profile is not None:
        return "train.profile measures a single job"
    if train.compile:
        return "train.compile=true compiles the layers of a single job"
    if config.kernels.kind is not Kernels.torch:
        return f"kernels.kind={config.kernels.kind.value} computes the base together with one adapter"
    if config.objective.kind is not ObjectiveKind.sft:
        return f"objective={config.objective.kind.value} has a loss of several answers, and the passes of a pack have that of sft"
    if config.optimizer.kind is not OptimizerKind.adamw:
        return f"optimizer.kind={config.optimizer.kind.value} is stepped by DeepSpeed's engine"
    if train.neftune_alpha is not None or train.label_smoothing:
        return "train.neftune_alpha and train.label_smoothing change the pass of one job"
    if lora.method is LoraMethod.none:
        return "lora.method=none trains the base itself"
    if lora.variant.changes_base:
        return f"lora.method={lora.method.value} changes the base"
    if lora.variant.alone:
        return f"lora.method={lora.method.value} has weights, or a start, of its own that a pack does not make"
    if lora.modules_to_save:
        return "lora.modules_to_save trains copies of the base's modules"
    if lora.bias != "none":
        return f"lora.bias={lora.bias} trains biases of the base"
    if config.tracker.kind is TrackerKind.swanlab:
        return "tracker=swanlab has one run in a process"
    measured = [name for name in config.sweep.objective if name in (*objective.COSTS, objective.SPEED)]
    return f"sweep.objective={measured[0]} is measured in a process" if measured else None


_MEASURED: preflight.Measured = {}
"""Of the jobs of this process."""
_kept: ContextVar[preflight.Measured | None] = ContextVar("kept", default=None)


def measured() -> preflight.Measured | None:
    """In a pack, the records that its other members have measured, so that the next one starts sooner; None outside."""
    return _kept.get() if scheduler.current() is None else _MEASURED


@contextmanager
def keeping(known: preflight.Measured) -> Iterator[None]:
    """While the block makes plans, look in ``known`` for records that were measured before, and add new ones."""
    token = _kept.set(known)
    try:
        yield
    finally:
        _kept.reset(token)


def found(admitted: Admitted, job: Any) -> dict[str, Any]:
    """The part of a job's ``Demand`` that is about packs; ``job``: section ``hydra.job`` of its config."""
    config, on_gpu = admitted.config, bool(admitted.machine and admitted.machine.gpus)
    if admitted.machine is None:  # another scheduler has yet to choose it, and starts each job by itself
        return {}
    why = why_alone(config)
    if why is None and (job.chdir or job.env_set):
        why = "hydra.job.chdir and hydra.job.env_set change the process"
    if why is not None:
        return {"why_alone": why}
    return {"pack": pack_key(config), "shared": pack_memory(config, admitted.plan.labelled, on_gpu)}


def planned(admitted: Admitted) -> list[str]:
    """How many runs like this one a pack could have, in one line; none outside a sweep, or if that is not known."""
    hydra, plan = HydraConfig.get(), admitted.plan
    if hydra.mode is not RunMode.MULTIRUN or getattr(hydra.launcher, "pack", False) in (False, "off"):
        return []
    if (why := why_alone(admitted.config)) is not None:
        return [f"runs alone, in no pack: {why}"]
    on_gpu = plan.gpu_memory is not None
    memory = pack_memory(admitted.config, plan.labelled, on_gpu)
    room = plan.gpu_memory if on_gpu else int(MEMORY_SHARE * plan.host_memory)
    if memory is None or not room:
        return []
    count, place = memory.members(room), "per GPU" if on_gpu else "of main memory"
    if count == 1:
        return [f"runs alone, in no pack: a second such job does not fit ({size(memory.of(2))} with it {place})"]
    ends = [f"{size(memory.of(members))} with {members}" for members in dict.fromkeys((1, min(count, 8), count))]
    return [f"in a pack, up to {count:,} such jobs share a base: {', '.join(ends)} {place}"]
