"""transformers' schedules as ``train.scheduler`` names them, against their formulas."""

import math
from collections.abc import Callable

import pytest
import torch
from transformers import get_scheduler

from hydraft.config.choices import Scheduler
from hydraft.config.train import TrainConfig
from hydraft.training import schedule

STEPS, WARMUP, RATE, FLOOR = 40, 4, 1e-2, 1e-3


def rates(train: TrainConfig) -> list[float]:
    """Of every step and the one after the last, of the second of two groups, whose rate is three times that of the first."""
    first, second = (torch.nn.Parameter(torch.zeros(())) for _ in range(2))
    optimizer = torch.optim.AdamW([{"params": [first]}, {"params": [second], "lr": 3 * RATE}], lr=RATE)
    made = get_scheduler(
        schedule.scheduler_type(train), optimizer, WARMUP if train.warms_up else 0, STEPS,
        scheduler_specific_kwargs=schedule.scheduler_kwargs(train, STEPS, WARMUP if train.warms_up else 0),
    )  # fmt: skip
    found = []
    for step in range(STEPS + 1):
        found.append(made.get_last_lr()[1] / 3)
        optimizer.step()
        made.step()
        at = made.last_epoch
        assert at == step + 1
        before = made.get_last_lr()
        schedule.advance(made, at)
        assert made.get_last_lr() == pytest.approx(before)
    return found


def rest(step: int) -> float:
    """The share of the steps after the warm-up that are left."""
    return (STEPS - step) / (STEPS - WARMUP)


AFTER: dict[Scheduler, Callable[[int, float], float]] = {
    Scheduler.linear: lambda step, floor: floor + (RATE - floor) * rest(step),
    Scheduler.cosine: lambda step, floor: floor + (RATE - floor) * (1 + math.cos(math.pi * (1 - rest(step)))) / 2,
    Scheduler.polynomial: lambda step, floor: floor + (RATE - floor) * rest(step) ** 2,
    Scheduler.wsd: lambda step, floor: floor + (RATE - floor) * min(1.0, (STEPS - step) / 10),  # a quarter of 40 steps
}


@pytest.mark.parametrize("kind", AFTER, ids=lambda kind: kind.value)
@pytest.mark.parametrize("floor", [0.0, FLOOR])
def test_a_schedule_falls_to_its_floor(kind: Scheduler, floor: float) -> None:
    train = TrainConfig(
        scheduler=kind, learning_rate=RATE, min_learning_rate=floor, warmup_steps=WARMUP, decay_ratio=0.25
    )
    found = rates(train)
    warm = 0.0 if kind is not Scheduler.wsd else floor  # transformers' wsd rises from its floor
    assert found[:WARMUP] == pytest.approx([warm + (RATE - warm) * step / WARMUP for step in range(WARMUP)])
    assert found[WARMUP:] == pytest.approx([AFTER[kind](step, floor) for step in range(WARMUP, STEPS + 1)])


def test_a_constant_rate_has_a_warm_up_too() -> None:
    found = rates(TrainConfig(scheduler=Scheduler.constant, learning_rate=RATE, warmup_ratio=0.1))
    assert found == pytest.approx([RATE * min(1.0, step / WARMUP) for step in range(STEPS + 1)])
    assert rates(TrainConfig(scheduler=Scheduler.constant, learning_rate=RATE)) == pytest.approx([RATE] * (STEPS + 1))
