"""What is read and sent while a model loads, compared with calculations by hand."""

import pytest

from conftest import config_of
from hydraft.models.shapes import planned_config
from hydraft.plan.disk import disk
from hydraft.plan.model_size import ModelSize
from hydraft.plan.parameters import layout, trained
from hydraft.plan.startup import QUANTISED, READ, Startup, startup

PARAMETERS = 8_030_261_248
LINEAR = PARAMETERS - 2 * 128256 * 4096 - 65 * 4096


def started(*overrides: str, cpus: int | None = None) -> Startup:
    """The start of a run, with a copy if its disk space is planned."""
    config = config_of("mode=plan", "cluster.gpu_memory=24GiB", "train.precision=bf16", *overrides)
    native = planned_config(config.model)
    assert native is not None
    known = layout(native)
    assert known is not None
    learns = trained(known, config.lora)
    copied = disk(config, known, learns).quantised > 0
    return startup(config, ModelSize(known, learns, 64), cpus, copied)


def test_a_large_model_is_quantised_once() -> None:
    made = started("model=llama3", "zero=stage2", "cluster=1x2")
    quantised = LINEAR // 2 + LINEAR // 64 + 4 * LINEAR // 64 // 256 + 224 * 4 + 64 + 1024 + 2 * (PARAMETERS - LINEAR)
    assert (made.read, made.read_later, made.sent) == (2 * PARAMETERS, quantised, 0)
    assert made.seconds == pytest.approx(2 * PARAMETERS / READ)
    assert made.seconds_later == pytest.approx(quantised / READ)
    sharded = started("model=llama3", "zero=stage3", "cluster=2x4")  # a machine has half of the ranks
    assert (sharded.read, sharded.read_later) == (2 * PARAMETERS, round(quantised / 2))
    every = started("model=llama3", "zero=stage2", "cluster=1x2", "model.cache_quantised=false")
    assert (every.read, every.read_later) == (2 * PARAMETERS, 2 * PARAMETERS)


def test_a_small_model_is_quantised_at_each_start() -> None:
    config = ("model=qwen", "model.size=2.5-0.5b", "cluster=1x2")
    made, alone = started(*config, "zero=stage3"), started(*config, "zero=stage2")
    assert made.read == made.read_later == alone.read
    linear = 24 * (2 * 896 * 896 + 2 * 128 * 896 + 3 * 4864 * 896)
    assert (made.sent, alone.sent) == (4 * linear // 64 // 2, 0)
    slow = started(*config, "zero=stage3", cpus=2)
    assert slow.seconds - made.seconds == pytest.approx(linear / QUANTISED / 2)


def test_what_is_not_quantised_is_read_as_it_is() -> None:
    made = started("model=llama3", "quant=none")
    assert made == Startup(2 * PARAMETERS, 2 * PARAMETERS, 0, made.seconds, made.seconds)
