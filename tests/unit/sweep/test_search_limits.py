"""What limits a search: settings that are refused, and what is planned from those that are not."""

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from conftest import ROOT
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.sweep.budget import Pace
from hydraft.sweep.candidate import Candidate, Packed
from hydraft.sweep.limits import UNLIMITED, Limits
from hydraft.sweep.pace import save
from hydraft.sweep.search_space import make_space

GRID = ("lora.r=2,4,8", "train.warmup_ratio=0,0.05,0.1,0.2")
INTERVAL = ("lora.r=2,4,8", "train.learning_rate=tag(log, interval(1e-4, 1e-1))")


@functools.cache
def _defaults() -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", return_hydra_config=True)


def composed(budget: Any = None, eval_every: Any = 10) -> DictConfig:
    """What Hydra composes for a job of a sweep."""
    config = copy.deepcopy(_defaults())
    config.sweep.budget, config.train.eval_every = budget, eval_every
    return config


def limits(
    pruner: str = "none",
    *space: str,
    config: DictConfig | None = None,
    streams: bool = True,
    **more: Any,
) -> Limits | None:
    settings = {"sampler": "random", "trials": None, "pruner": pruner, "pruner_options": {}} | more
    parsed = OverridesParser.create().parse_overrides(list(space or GRID))
    return Limits.of(config or composed(), make_space(parsed, OmegaConf.structured(Config)), settings, streams)


def planned(found: Limits | None, *steps: int) -> dict[str, Any]:
    """The settings of the search's method, with jobs of ``steps`` that have been planned."""
    assert found is not None
    return found.plan([Candidate([], Packed.of(composed(found.budget)), steps=one) for one in steps])


@pytest.mark.parametrize(
    ("pruner", "budget", "more", "message"),
    [
        *(
            (
                "none",
                text,
                {},
                f"sweep.budget={text}: must be a time above 0 such as 90m, 2h, 1h30m or 45s, or a number",
            )
            for text in ("soon", "0", "-5m", "1d")
        ),
        (
            "successive_halving",
            None,
            {"streams": False},
            "hydra.sweeper.pruner=successive_halving: needs a launcher that takes jobs while others run: use hydra/launcher=pool",
        ),
        (
            "none",
            "2h",
            {"streams": False},
            "sweep.budget=2h: needs a launcher that takes jobs while others run: use hydra/launcher=pool",
        ),
        ("median", "2h", {"streams": False}, "sweep.budget=2h: needs a launcher"),
        (
            "hyperband",
            "2h",
            {},
            "sweep.budget=2h: decides how many candidates reach each rung, and so does hydra.sweeper.pruner=hyperband: "
            "use hydra.sweeper.pruner=successive_halving",
        ),
        ("hyperband", None, {"pruner_options": {"n_brackets": 2}}, "hyperband has no n_brackets, only min_resource"),
        ("successive_halving", None, {"eval_every": "epoch"}, "set train.eval_every to a number of steps"),
        (
            "successive_halving",
            "2h",
            {"pruner_options": {"min_resource": 15}},
            "hydra.sweeper.pruner_options.min_resource=15: must be a multiple of train.eval_every=10",
        ),
    ],
)
def test_impossible_limits_are_refused_in_one_line(
    pruner: str, budget: str | None, more: dict[str, Any], message: str
) -> None:
    config = composed(budget, more.pop("eval_every", 10))
    with pytest.raises(ConfigError) as refused:
        limits(pruner, config=config, **more)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("pruner", ["none", "median"])
def test_without_rungs_and_budget_there_are_none(pruner: str) -> None:
    assert limits(pruner) is None
    assert limits(pruner, streams=False) is None  # so any launcher will do


def test_the_rungs_are_those_of_the_longest_job() -> None:
    found = limits("successive_halving", pruner_options={"reduction_factor": 2})
    settings = planned(found, 40, 90, 90)
    assert found is not None and (found.total, found.steps) == (90, (10, 20, 40))
    assert settings["trials"] is None and "shuffle" not in settings  # the search's own defaults
    assert found.brackets(8) == [(8, 0)] and found.known == []


def test_hyperband_runs_all_its_brackets_once_unless_a_number_is_given() -> None:
    """9, 5 and 3 candidates with rungs at 10 and 30 of 90 steps (arXiv:1603.06560, algorithm 1); a grid has its own number."""
    found = limits("hyperband")
    assert planned(found, 90)["trials"] == 17
    assert found is not None and found.brackets(17) == [(9, 0), (5, 1), (3, 2)]
    assert planned(limits("hyperband", trials=4), 90)["trials"] == 4
    assert planned(limits("hyperband", sampler="grid"), 90)["trials"] is None


@pytest.mark.parametrize(
    ("space", "more", "trials"),
    [
        (GRID, {}, 12),
        (INTERVAL, {}, UNLIMITED),
        (GRID, {"sampler": "grid"}, None),
        (INTERVAL, {"trials": 5}, 5),
    ],
    ids=["points", "an interval", "a grid", "a number"],
)
def test_a_budget_ends_a_search_that_has_no_number_of_trials(
    space: tuple[str, ...], more: dict[str, Any], trials: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path))
    settings = planned(limits("none", *space, config=composed("1h30m"), **more), 90)
    assert settings["trials"] == trials and settings["shuffle"] is True


def test_a_budget_counts_from_its_start_and_finds_the_times_of_an_earlier_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path))
    found = limits("successive_halving", config=composed("90m"))
    planned(found, 90)
    assert found is not None and found.known == [] and found.file.parent == tmp_path / "pace"
    assert found.steps == (10, 30) and found.brackets(64) == []  # as many as there is time for
    found.clock = lambda: found.began + 400.0
    assert found.left == pytest.approx(5000)
    save(found.file, [Pace(4, 0.5, 2.0, shared=0.3)])
    again = limits("successive_halving", config=composed("10m"))
    planned(again, 90)
    assert again is not None and again.known == [Pace(4, 0.5, 2.0, shared=0.3)]
