"""The learning rate schedule: transformers' function for it, and its position, which a checkpoint keeps. No torch."""

from typing import Any

from hydraft.config.choices import Scheduler
from hydraft.config.train import TrainConfig


def scheduler_type(train: TrainConfig) -> str:
    """transformers' name of the schedule. Its linear one has no floor; that of a polynomial of power 1 is the same line."""
    match train.scheduler:
        case Scheduler.constant:
            return "constant_with_warmup" if train.warms_up else "constant"
        case Scheduler.linear:
            return "polynomial" if train.min_learning_rate else "linear"
        case Scheduler.cosine:
            return "cosine_with_min_lr" if train.min_learning_rate else "cosine"
        case Scheduler.wsd:
            return "warmup_stable_decay"
        case Scheduler.polynomial:
            return "polynomial"


def scheduler_kwargs(train: TrainConfig, steps: int, warmup: int) -> dict[str, Any]:
    """transformers' ``lr_scheduler_kwargs`` for a run of ``steps`` steps, of which ``warmup`` are the warm-up."""
    floor = train.min_learning_rate
    match scheduler_type(train):
        case "polynomial":
            return {"lr_end": floor, "power": train.decay_power if train.scheduler is Scheduler.polynomial else 1.0}
        case "cosine_with_min_lr":
            return {"min_lr_rate": floor / train.learning_rate}
        case "warmup_stable_decay":
            decay = min(max(1, round(train.decay_ratio * steps)), max(1, steps - warmup))
            return {"num_decay_steps": decay, "decay_type": "linear", "min_lr_ratio": floor / train.learning_rate}
    return {}


def schedule_step(scheduler: Any) -> int:
    """The step of a learning rate schedule."""
    return int(getattr(scheduler, "scheduler", scheduler).last_epoch)


def advance(scheduler: Any, step: int) -> None:
    """Set a schedule to ``step``. Its length may have changed since the checkpoint was saved."""
    scheduler = getattr(scheduler, "scheduler", scheduler)
    scheduler.last_epoch, scheduler._step_count = step, step + 1
    rates = [base * rate(step) for base, rate in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates
