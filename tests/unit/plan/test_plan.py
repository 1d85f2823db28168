"""The arithmetic of batches and steps, compared with counts by hand and by the Trainer."""

import dataclasses

import pytest

from conftest import config_of
from hydraft.plan.plan import make_plan
from hydraft.system.hardware import Hardware


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


def test_hosts_that_are_this_machine_share_its_memory() -> None:
    hosts = "cluster.hosts=[localhost,127.0.0.1]"
    machine = Hardware(cpus=2, memory=8 * 2**30)
    two, one = (make_plan(config_of(*typed), 64, machine) for typed in (["cluster=2x2", hosts], ["cluster=1x4"]))
    assert two.cost is not None and one.cost is not None and two.cost.memory == one.cost.memory
    between = dataclasses.replace(machine, memory=3 * two.cost.memory.host_peak)  # enough for two ranks, not for four
    apart = make_plan(config_of("cluster=2x2", "cluster.hosts=[a,b]"), 64, between)
    assert (apart.fits, make_plan(config_of("cluster=2x2", hosts), 64, between).fits) == (True, False)


def test_one_batch_is_an_epoch_of_overfit() -> None:
    plan = make_plan(config_of("debug=overfit", "train.micro_batch_size=4"), 64)
    assert (plan.records, plan.steps_per_epoch, plan.steps) == (4, 1, 300)
