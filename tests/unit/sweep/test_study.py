"""The search compared with Optuna's own loop, and resumed several times."""

import dataclasses
from pathlib import Path

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hydra_plugins.hydraft_search.search import SearchConf
from hydraft.config.bounds import bounds_of
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.sweep.results import objective
from hydraft.sweep.search_space import Space, make_space
from hydraft.sweep.study import PRUNERS, SAMPLERS, Method, Search


def space_of(*overrides: str) -> Space:
    return make_space(OverridesParser.create().parse_overrides(list(overrides)), OmegaConf.structured(Config))


WIDE = ("zero=stage2,stage3", "lora.r=interval(4,64)", "train.learning_rate=tag(log, interval(1e-5,1e-3))")


def loss(parameters: dict[str, object]) -> float:
    return abs(float(str(parameters["train.learning_rate"])) - 3e-4) * 1000 + int(str(parameters["lora.r"])) / 64


def run(search: Search, stop_after: int = 99) -> int:
    for count in range(stop_after):
        trial = search.ask()
        if trial is None:
            return count
        search.ended(trial, [loss(trial.params)])
    return stop_after


def test_overrides_become_distributions() -> None:
    space = space_of(*WIDE, "lora.alpha=range(8,33,8)", "optimizer.weight_decay=range(0,0.31,0.1)", "train.epochs=2")
    assert space.axes == {
        "zero": CategoricalDistribution(["stage2", "stage3"]),
        "lora.r": IntDistribution(4, 64),  # an integer in the schema
        "train.learning_rate": FloatDistribution(1e-5, 1e-3, log=True),
        "lora.alpha": IntDistribution(8, 32, step=8),
        "optimizer.weight_decay": FloatDistribution(0, 0.3, step=0.1),
    }
    assert space.fixed == ["train.epochs=2"]
    assert space.overrides({"zero": "stage3", "train.learning_rate": 0.000123456789}) == [
        "train.epochs=2",
        "zero=stage3",
        "train.learning_rate=0.000123457",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.r=4"], "nothing to search"),
        (["train.learning_rate=interval(1e-3,1e-5)"], "from a lower value to a higher one"),
        (["train.learning_rate=tag(log, interval(0,1e-3))"], "above 0"),
    ],
)
def test_an_invalid_search_space_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space_of(*overrides)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Method(trials=0), "hydra.sweeper.trials=0: must be at least 1, or null for 20"),
        (Method(sampler="nonsense"), r"hydra.sweeper.sampler=nonsense: no such sampler \(there are: cmaes, grid"),
        (Method(pruner="half"), "hydra.sweeper.pruner=half: no such pruner"),
        (Method(sampler_options={"nope": 1}), "hydra.sweeper.sampler_options"),
        (Method(sampler="grid"), "train.learning_rate: a grid has no intervals"),
    ],
)
def test_an_invalid_method_is_refused(method: Method, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        Search(tmp_path, space_of(*WIDE), ["loss"], method)


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes"])
def test_trials_equal_those_of_optuna(sampler: str, tmp_path: Path) -> None:
    """Trial by trial the same values as ``study.optimize`` with the same sampler and seed."""
    search = Search(tmp_path, space_of(*WIDE), ["loss"], Method(15, sampler, seed=7))
    assert run(search) == 15
    made = {
        "tpe": optuna.samplers.TPESampler,
        "random": optuna.samplers.RandomSampler,
        "cmaes": optuna.samplers.CmaEsSampler,
    }
    reference = optuna.create_study(sampler=made[sampler](seed=7))

    def task(trial: optuna.Trial) -> float:
        trial.suggest_categorical("zero", ["stage2", "stage3"])
        trial.suggest_int("lora.r", 4, 64)
        trial.suggest_float("train.learning_rate", 1e-5, 1e-3, log=True)
        return loss(trial.params)

    if sampler != "cmaes":  # without all axes at once, it would not sample them together in the first trial
        reference.optimize(task, n_trials=15)
    else:
        for _ in range(15):
            trial = reference.ask(search.space.axes)
            reference.tell(trial, loss(trial.params))
    assert [trial.params for trial in search.study.trials] == [trial.params for trial in reference.trials]


def test_an_interrupted_search_resumes(tmp_path: Path) -> None:
    first = Search(tmp_path, space_of(*WIDE), ["loss"], Method(8))
    assert run(first, 3) == 3
    cut_off = first.ask()
    assert cut_off is not None
    resumed = Search(tmp_path, space_of(*WIDE), ["loss"], Method(8))
    retried = resumed.ask()
    assert retried is not None and retried.params == cut_off.params
    resumed.ended(retried, [loss(retried.params)])
    assert run(resumed) == 4
    assert resumed.counts() == {"complete": 8}
    tried = [tuple(trial.params.values()) for trial in resumed.study.trials]
    assert len(set(tried)) == 8
    assert run(Search(tmp_path, space_of(*WIDE), ["loss"], Method(10))) == 2
    with pytest.raises(ConfigError, match="was started with"):
        Search(tmp_path, space_of(*WIDE), ["memory"], Method(8))


def test_a_grid_tries_each_point_once_and_new_values_add_points(tmp_path: Path) -> None:
    axes = ("zero=stage2,stage3", "lora.r=range(4,13,4)")
    search = Search(tmp_path, space_of(*axes), ["loss"], Method(sampler="grid"))
    seen = set()
    while (trial := search.ask()) is not None:
        seen.add(tuple(search.overrides(trial)))
        search.ended(trial, [0.0])
    assert len(seen) == 6 and search.counts() == {"complete": 6}
    wider = space_of("zero=stage1,stage2,stage3", "lora.r=range(4,17,4)")
    more = Search(tmp_path, wider, ["loss"], Method(sampler="grid"))
    added = set()
    while (trial := more.ask()) is not None:
        added.add(tuple(more.overrides(trial)))
        more.ended(trial, [0.0])
    assert len(added) == 6 and not added & seen and more.counts() == {"complete": 12}


def test_the_median_rule_stops_trials_worse_than_the_median(tmp_path: Path) -> None:
    """Optuna's MedianPruner: above the median of the other trials after the same number of evaluations."""
    method = Method(9, "random", pruner="median", pruner_options={"n_startup_trials": 2})
    search = Search(tmp_path, space_of(*WIDE), ["loss"], method)
    decisions = []
    for offset in (0.0, 1.0, 2.0, 0.2):
        trial = search.ask()
        assert trial is not None
        pruned = any(search.evaluated(trial, step, offset + 1 / step) for step in (10, 20))
        decisions.append(pruned)
        search.ended(trial, None if pruned else [offset], pruned)
    assert decisions == [False, False, True, False]
    assert search.counts() == {"complete": 3, "pruned": 1}
    with pytest.raises(ConfigError, match="by one objective"):
        Search(tmp_path / "two", space_of(*WIDE), ["loss", "memory"], method)


def test_with_two_objectives_the_best_trials_are_the_pareto_front(tmp_path: Path) -> None:
    search = Search(tmp_path, space_of("lora.r=range(4,17,4)"), ["loss", "exact_match"], Method(sampler="grid"))
    for values in ([1.0, 0.5], [2.0, 0.9], [3.0, 0.1], [0.5, 0.6]):
        trial = search.ask()
        assert trial is not None
        search.ended(trial, values)
    assert sorted(trial.values for trial in search.best()) == [[0.5, 0.6], [2.0, 0.9]]


def test_objectives_are_read_from_a_result() -> None:
    result = {
        "objective": 0.5,
        "after": {"loss": 0.5, "exact_match": 0.7},
        "peak_memory_bytes": 10,
        "train_seconds": 4.0,
        "tokens": 8,
    }
    names = ["loss", "exact_match", "memory", "seconds", "tokens_per_second"]
    assert objective.values(names, result) == [0.5, 0.7, 10, 4, 2]
    assert [objective.direction(name) for name in names] == ["minimize", "maximize", "minimize", "minimize", "maximize"]
    assert objective.values(["rouge_l"], result) is None
    assert objective.value("loss", {"objective": float("nan")}) is None


@pytest.mark.parametrize(("setting", "known"), [("sampler", SAMPLERS), ("pruner", PRUNERS)])
def test_the_documented_names_are_those_of_the_study(setting: str, known: dict[str, object]) -> None:
    declared = next(field for field in dataclasses.fields(SearchConf) if field.name == setting)
    assert set(bounds_of(declared).one_of) == known.keys()
