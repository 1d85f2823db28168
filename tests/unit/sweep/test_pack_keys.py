"""Which jobs share a process: every setting of the schema either splits packs or is listed as one in which members differ."""

import dataclasses
import typing
from collections.abc import Iterator
from enum import Enum
from typing import Any

import pytest

from conftest import config_of
from hydraft.config.choices import Kernels, Launcher, Offload, Precision, TrackerKind
from hydraft.config.lora import LoraMethod
from hydraft.config.objective import ObjectiveKind
from hydraft.sweep import packs
from hydraft.sweep.packs import FREE, pack_key, why_alone
from hydraft.training.pack import scheduler

PRECISION = "train.precision=fp32"

MAY_RUN_ALONE = {
    "cluster.nodes", "cluster.ranks_per_node", "cluster.launcher", "cluster.hosts", "cluster.hostfile", "zero.stage",
    "zero.offload_optimizer", "zero.offload_param", "train.compile", "train.profile", "kernels.kind", "lora.bias", "lora.modules_to_save", "lora.method",
    "train.precision", "tracker.kind", "objective.kind", "optimizer.kind", "train.neftune_alpha", "train.label_smoothing",
}  # fmt: skip
"""Settings with values for which a job runs alone."""


def settings(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """All settings below a section: name, value and declared type."""
    types = typing.get_type_hints(type(section))
    for field in dataclasses.fields(section):
        value, name = getattr(section, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from settings(value, f"{name}.")
        else:
            yield name, value, types[field.name]


def others(value: Any, declared: Any) -> list[Any]:
    """Other values that a config with this setting can be saved with; they need not be allowed."""
    if value is None:
        kind = next(one for one in typing.get_args(declared) if one is not type(None))
        return [{int: 7, float: 7.0}.get(kind, "x")]
    match value:
        case bool():
            return [not value]
        case Enum():
            return [one for one in type(value) if one is not value]
        case int() | float():
            return [value + 1]
        case str():
            return [f"{value}x"]
        case list():
            return [[*value, *(value[:1] or ["x"])]] if typing.get_args(declared) != (int,) else [[*value, 1]]
        case dict():
            return [{}] if value else [{"x": "y"}]
    raise AssertionError(value)


def changed(section: Any, name: str, value: Any) -> Any:
    """A copy of a section in which one setting has another value."""
    first, _, rest = name.partition(".")
    new = changed(getattr(section, first), rest, value) if rest else value
    return dataclasses.replace(section, **{first: new})


CONFIG = config_of(PRECISION)
SETTINGS = list(settings(CONFIG))


def is_free(name: str) -> bool:
    return name == "seed" or name in FREE or name.partition(".")[0] in FREE


def test_the_list_has_names_of_the_schema_and_each_once() -> None:
    names = {name for name, _, _ in SETTINGS}
    assert set(FREE) <= names | {name.partition(".")[0] for name in names} and len(set(FREE)) == len(FREE)
    assert names >= MAY_RUN_ALONE


@pytest.mark.parametrize(("name", "value", "declared"), SETTINGS, ids=[name for name, _, _ in SETTINGS])
def test_a_setting_splits_packs_unless_it_is_listed(name: str, value: Any, declared: Any) -> None:
    key = pack_key(CONFIG)
    assert key is not None
    for other in others(value, declared):
        config = changed(CONFIG, name, other)
        if why_alone(config) is not None:
            assert name in MAY_RUN_ALONE and pack_key(config) is None
        elif name != "model.sizes":  # of which only the chosen one is part of a run
            assert (pack_key(config) == key) is is_free(name), other


def test_random_weights_belong_to_a_seed() -> None:
    random = changed(changed(CONFIG, "model.size", None), "model.init", type(CONFIG.model.init).random)
    assert pack_key(random) != pack_key(changed(random, "seed", 7))


ALONE = [
    ("cluster.ranks_per_node", 2, "it has 2 ranks"),
    ("cluster.launcher", Launcher.slurm, "another machine"),
    ("zero.stage", 3, "zero.stage=3"),
    ("zero.offload_optimizer", Offload.cpu, "zero.offload_optimizer"),
    ("zero.offload_param", Offload.cpu, "zero.offload_param"),
    ("train.precision", Precision.fp16, "train.precision=fp16"),
    ("train.compile", True, "train.compile=true"),
    ("train.profile", [2, 3], "train.profile measures"),
    ("kernels.kind", Kernels.liger, "kernels.kind=liger"),
    ("lora.method", LoraMethod.none, "lora.method=none"),
    ("lora.method", LoraMethod.pissa, "lora.method=pissa"),
    ("lora.method", LoraMethod.vera, "lora.method=vera"),
    ("lora.modules_to_save", ["norm"], "lora.modules_to_save"),
    ("lora.bias", "all", "lora.bias=all"),
    ("tracker.kind", TrackerKind.swanlab, "tracker=swanlab"),
    ("objective.kind", ObjectiveKind.dpo, "objective=dpo"),
    ("sweep.objective", ["loss", "memory"], "sweep.objective=memory"),
    ("sweep.objective", ["tokens_per_second"], "sweep.objective=tokens_per_second"),
]


@pytest.mark.parametrize(("name", "value", "why"), ALONE, ids=[f"{name}={value}" for name, value, _ in ALONE])
def test_a_job_that_cannot_share_its_process_says_why(name: str, value: Any, why: str) -> None:
    config = changed(CONFIG, name, value)
    assert pack_key(config) is None and why in str(why_alone(config))


def test_jobs_over_method_rank_and_learning_rate_share_a_pack_and_those_over_the_quantisation_do_not() -> None:
    other = config_of(PRECISION, "lora=dora", "lora.r=4", "train.learning_rate=2e-3", "train.epochs=1", "seed=7")
    assert pack_key(other) == pack_key(CONFIG) != pack_key(config_of(PRECISION, "quant=none"))


def test_members_of_a_pack_share_what_was_measured_of_the_records() -> None:
    members, seen = scheduler.Scheduler(lambda _: None), []
    for name in range(2):
        members.add(name, lambda: seen.append(packs.measured()))
    members.turn()
    assert seen[0] is seen[1] is not None and packs.measured() is None
