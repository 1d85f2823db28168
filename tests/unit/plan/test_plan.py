"""The arithmetic of batches and steps, compared with counts by hand and by the Trainer."""

import pytest

from conftest import config_of
from hydraft.plan.plan import make_plan


@pytest.mark.parametrize(
    ("overrides", "records", "expected"),
    [
        (["train.micro_batch_size=2", "train.gradient_accumulation_steps=4", "train.epochs=3"], 64, (8, 8, 24)),
        (["train.micro_batch_size=2", "train.gradient_accumulation_steps=4", "train.epochs=3"], 65, (8, 9, 27)),
        (
            ["train.micro_batch_size=2", "train.gradient_accumulation_steps=1", "cluster=1x4", "train.epochs=0.5"],
            64,
            (8, 8, 4),
        ),
        (["train.micro_batch_size=1", "train.gradient_accumulation_steps=1", "train.max_steps=5"], 3, (1, 3, 5)),
    ],
)
def test_steps(overrides: list[str], records: int, expected: tuple[int, int, int]) -> None:
    plan = make_plan(config_of(*overrides), records)
    assert (plan.global_batch_size, plan.steps_per_epoch, plan.steps) == expected
