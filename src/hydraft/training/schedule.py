"""The position in a learning rate schedule, which a checkpoint keeps. No torch."""

from typing import Any


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
