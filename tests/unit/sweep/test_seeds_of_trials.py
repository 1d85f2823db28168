"""A trial of a search with several seeds: its value is their mean, and one that is pruned is not run to its end."""

from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import IntDistribution

from hydraft.sweep import replicas
from hydraft.sweep.search_space import Space
from hydraft.sweep.seeds_of_trials import SeedsOfTrials
from hydraft.sweep.study import Method, Search


class OneSession:
    """What is used of a session: the config of the sweep."""

    class context:
        config_loader = None

    def __init__(self, count: int) -> None:
        from omegaconf import OmegaConf

        self.config = OmegaConf.create({"sweep": {"replicas": count}})


def trials(folder: Path, count: int, monkeypatch: Any, **method: Any) -> SeedsOfTrials:
    monkeypatch.setattr(
        replicas, "expanded", lambda *rest: [[*rest[-1][0], f"seed={42 + index}"] for index in range(count)]
    )
    space = Space({"lora.r": IntDistribution(2, 4)}, [])
    found: Any = OneSession(count)
    return SeedsOfTrials(found, Search(folder, space, ["loss"], Method(trials=2, sampler="grid", **method)))


def test_the_value_of_a_trial_is_the_mean_of_its_seeds(tmp_path: Path, monkeypatch: Any) -> None:
    seeds = trials(tmp_path, 3, monkeypatch)
    tasks = [task for _ in range(3) if (task := seeds.next()) is not None]
    assert [(number, run) for number, _, run in tasks] == [(i, ["lora.r=2", f"seed={42 + i}"]) for i in range(3)]
    for (_, trial, _), value in zip(tasks, (0.5, 0.7, 0.9), strict=True):
        assert seeds.search.best() == []
        seeds.ended(trial, [value], pruned=False)
    assert seeds.search.best()[0].value == pytest.approx(0.7)
    (first, trial, _), *_ = [task for _ in range(3) if (task := seeds.next()) is not None]
    assert first == 3 and seeds.next() is None
    for values in ([0.1], None, [0.1]):  # one seed fails
        seeds.ended(trial, values, pruned=False)
    assert seeds.search.counts() == {"complete": 1, "fail": 1}


def test_the_first_seed_decides_whether_a_trial_is_pruned(tmp_path: Path, monkeypatch: Any) -> None:
    options = {"n_startup_trials": 1}
    seeds = trials(tmp_path, 2, monkeypatch, pruner="median", pruner_options=options)
    for value in (0.5, 0.5):
        task = seeds.next()
        assert task is not None and not seeds.evaluated(task[0], task[1], 5, value)
        seeds.ended(task[1], [value], pruned=False)
    task = seeds.next()
    assert task is not None
    number, trial, _ = task
    assert not seeds.evaluated(number + 1, trial, 5, 0.9)
    assert seeds.evaluated(number, trial, 5, 0.9)
    seeds.ended(trial, None, pruned=True)
    assert seeds.is_pruned(trial) and seeds.next() is None  # its second seed is not started
    assert seeds.search.counts() == {"complete": 1, "pruned": 1}
