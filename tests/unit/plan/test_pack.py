"""The memory of a pack, compared with that of its runs."""

import dataclasses

import pytest

from conftest import config_of
from hydraft.config.schema import Config
from hydraft.plan.memory import Memory, memory
from hydraft.plan.model_size import ModelSize
from hydraft.plan.pack import PackMemory, largest, pack_memory
from hydraft.plan.parameters import trained
from hydraft.plan.plan import known_layout

LABELLED = 64
GPU = ["model=llama3", "mode=plan", "cluster.gpu_memory=24GiB", "train.precision=bf16"]


def alone(config: Config, on_gpu: bool) -> Memory:
    known, stored = known_layout(config)
    assert known is not None
    return memory(config, ModelSize(known, trained(known, config.lora), LABELLED, stored), on_gpu)


def pack(config: Config, on_gpu: bool) -> PackMemory:
    found = pack_memory(config, LABELLED, on_gpu)
    assert found is not None
    return found


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_pack_of_one_takes_what_the_run_takes(on_gpu: bool) -> None:
    config = config_of(*(GPU if on_gpu else ["train.precision=fp32"]), "zero=stage0")
    one = alone(config, on_gpu)
    expected = one.peak if on_gpu else one.host_peak
    assert pack(config, on_gpu).of(1) == pytest.approx(expected, rel=0.01)


def test_further_members_take_no_base() -> None:
    config = config_of(*GPU, "zero=stage0")
    one, found = alone(config, on_gpu=True), pack(config, on_gpu=True)
    own = one.training.adapter + one.training.gradients + one.training.optimizer
    assert found.states == own
    more = found.of(9) - found.of(8)
    assert own < more < one.peak - one.training.weights
    assert largest([found, dataclasses.replace(found, states=found.states + 1)]).states == found.states + 1
