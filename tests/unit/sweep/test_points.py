"""A sweep with several seeds: its jobs as points, what can be told apart, and which further seeds are run."""

import csv
import io
import json
import random
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

import folders
from conftest import config_of
from hydraft.data import mixture
from hydraft.errors import ConfigError
from hydraft.evaluation.record_scores import FILE, RecordScores, write
from hydraft.sweep import replicas
from hydraft.sweep.results import html, points, reading, table, verdict
from hydraft.sweep.results import write as results
from hydraft.sweep.results.ledger import State
from hydraft.sweep.results.outcome import Sweep

SEEDS = (42, 43, 44)
LOSSES = {4: 0.70, 8: 0.702, 16: 0.70, 32: 0.9}
"""By rank: 4, 8 and 16 differ by less than seeds do, 32 is worse."""


def loss_of(values: dict[str, Any]) -> float:
    return LOSSES[values["lora.r"]] + random.Random(f"{values}").gauss(0, 0.01)


def sweep(
    folder: Path, states: list[State] | None = None, about: dict[str, Any] | None = None, goal: folders.Goal = loss_of
) -> Path:
    """Three seeds of each rank on 60 records, which are not equally hard."""
    jobs = [{"lora.r": r, "seed": seed} for r in LOSSES for seed in SEEDS]
    folders.make(folder, jobs, states or [], about={"replicas": len(SEEDS), **(about or {})}, goal=goal)
    for job in jobs:
        run = folder / f"r={job['lora.r']},seed={job['seed']}"
        result = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps(result | {"trained_parameters": 1000 * job["lora.r"]}))
        hard, rest = random.Random(0), random.Random(f"{job}")
        sums = [10 * (loss_of(job) + hard.gauss(0, 0.3) + rest.gauss(0, 0.02)) for _ in range(60)]
        surplus = fmean(sums) - 10 * loss_of(job)  # the mean of the records is the run's loss
        right = [float(index % 10 < (2 if job["lora.r"] == 32 else 6)) for index in range(60)]
        write(
            run,
            [
                RecordScores(i, f"{i:016x}", total - surplus, 10, {"exact_match": right[i]})
                for i, total in enumerate(sums)
            ],
        )
    return folder


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    return reading.read(sweep(tmp_path_factory.mktemp("sweep") / "ranks"))


def test_jobs_that_differ_in_their_seed_alone_are_a_point(read: Sweep) -> None:
    assert [axis.key for axis in read.axes] == ["lora.r"]
    assert len(read.outcomes) == 4 and len(read.jobs) == 12 and read.counts == "12 done"
    for point in read.outcomes:
        runs = [loss_of({"lora.r": point.values["lora.r"], "seed": seed}) for seed in SEEDS]
        assert point.objectives == [pytest.approx(fmean(runs))]
        assert point.job.name == f"r={point.values['lora.r']}" and point.seeds == 3
        (ends,) = point.intervals
        assert ends is not None and ends[0] < point.objectives[0] < ends[1]
        assert point.config["seed"] == "42, 43, 44"
        assert [line["step"] for line in point.metrics if "loss" in line] == list(range(1, 41))
    assert read.outcomes[-1].values == {"lora.r": 32}


def test_points_that_differ_by_less_than_seeds_cannot_be_told_apart(read: Sweep) -> None:
    found = verdict.compare(read)
    assert found is not None and found.records == 60
    assert {one.point.values["lora.r"] for one in found.rivals if one.is_apart} == {32}
    assert found.smallest.values == {"lora.r": 4}
    (first, *more) = read.findings
    assert first.startswith("These three cannot be told apart (p = ") and first.endswith("of them is lora.r=4.")
    assert any("over 60 records and 3 seeds" in line for line in more)
    would = sum(" further seed" in line for line in more) + sum(line.startswith("No number of seeds") for line in more)
    assert would >= 1
    (worst,) = (one for one in found.rivals if one.is_apart)
    best = found.best.objectives[0]
    assert worst.difference.mean == pytest.approx(worst.point.objectives[0] - best)
    assert worst.difference.low > 0.1
    alone = next(one for one in read.outcomes if one.values == {"lora.r": 32}).intervals[0]
    assert alone is not None
    paired = worst.difference.high - worst.difference.low
    assert paired < (alone[1] - alone[0]) / 2  # records are as hard for both, which only pairs tell


def test_what_is_decided_is_what_seeds_can_tell(read: Sweep) -> None:
    found = verdict.compare(read)
    assert found is not None
    needed = sorted(one.needed for one in found.close if one.needed is not None)
    nothing = verdict.plan(read, (needed or [100])[0] - 1)
    assert nothing.points == [] and "none is added" in nothing.reason
    if needed:
        some = verdict.plan(read, needed[0])
        assert some.seeds == needed[0] and some.points == [found.best, *(one.point for one in found.close)]


def test_a_second_look_doubles_p(read: Sweep, tmp_path: Path) -> None:
    once = verdict.compare(read)
    twice = verdict.compare(reading.read(sweep(tmp_path / "again", about={"looks": 2})))
    assert once is not None and twice is not None
    for one, other in zip(once.rivals, twice.rivals, strict=True):
        assert other.p == pytest.approx(min(1, 2 * one.p))


def test_scores_of_answers_are_compared_by_record_and_others_by_seed(tmp_path: Path) -> None:
    about = {"objective": ["exact_match", "memory"], "direction": ["maximize", "minimize"]}
    folder = sweep(tmp_path / "two", about=about, goal=lambda values: [0.5, loss_of(values)])
    read = reading.read(folder)
    for point in read.outcomes:
        assert isinstance(point, points.Point)
        assert verdict.scores(point, "exact_match", 0).table.shape == (3, 60)
        assert verdict.scores(point, "general_bleu4", 0).records == ()
        assert verdict.scores(point, "general_bleu4", 0).table.shape == (3, 1)
    assert read.findings == [] and verdict.compare(read) is None


def test_points_with_other_records_are_not_compared(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "others")
    for seed in SEEDS:
        file = folder / f"r=32,seed={seed}" / FILE
        file.write_text(file.read_text().replace('"digest": "0', '"digest": "f'))
    read = reading.read(folder)
    found = verdict.compare(read)
    assert found is not None and [one.values["lora.r"] for one in found.others] == [32]
    assert any(line.startswith("Not compared with the best") and line.endswith("lora.r=32.") for line in read.findings)


def test_the_table_and_both_files_have_the_points(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "shown", [State.done] * 11 + [State.failed])
    stream = io.StringIO()
    results.report(folder, Console(file=stream, width=140))
    shown = stream.getvalue()
    assert "95 % interval" in shown and "These three cannot be told apart" in shown and "11 done, 1 failed" in shown
    rows = list(csv.DictReader((folder / table.FILE).read_text().splitlines()))
    assert [row["seeds"] for row in rows] == ["3", "3", "3", "2"] and rows[-1]["state"] == "failed"
    assert all(float(row["held-out loss low"]) < float(row["held-out loss"]) for row in rows)
    assert rows[0]["p"] == "" and all(float(row["p"]) > 0 for row in rows[1:])
    assert len((folder / table.RUNS).read_text().splitlines()) == 13


def test_the_charts_have_the_intervals(read: Sweep) -> None:
    content = html.content(read)
    charts = [chart for part in content["sections"] for chart in part["charts"]]
    against = next(chart for chart in charts if chart["title"] == "Held-out loss against lora.r")
    bars = against["traces"][0]["error_y"]
    assert len(bars["array"]) == 4 and min(bars["array"]) > 0 < min(bars["arrayminus"])
    from_best = next(chart for chart in charts if chart["title"].startswith("Difference from the best, r="))
    assert from_best["traces"][0]["marker"]["color"].count("var:warm") == 1
    assert content["findings"] == read.findings and content["noun"] == "point"


def test_the_runs_of_a_point_hold_out_the_same_records(records: Path) -> None:
    point = [f"data.train={records}", "data.eval=25%", "lora.r=4"]
    held = []
    for number in range(3):
        run = replicas.overrides(point, config_of(*point), number)
        config = config_of(*run)
        assert config.seed == 42 + number
        held.append(mixture.held_out(config.data, config.seed))
    assert replicas.overrides(point, config_of(*point), 0) == point  # the run that there is without replicas
    assert held[0] == held[1] == held[2] and len(held[0]) > 2
    other = mixture.held_out(config_of(*point, "seed=43").data, 43)
    assert other != held[0]


@pytest.mark.parametrize(
    ("settings", "swept", "message"),
    [
        ({"replicas": 3}, ["lora.r", "seed"], "sweep.replicas=3 runs each point with several seeds, and seed has"),
        ({"decide": True}, ["lora.r"], "sweep.decide=true needs points with several seeds"),
        ({"replicas": 10, "decide": True}, [], "sweep.max_replicas=10: sweep.decide=true adds seeds"),
    ],
)
def test_seeds_that_mean_something_else_are_refused(settings: dict[str, Any], swept: list[str], message: str) -> None:
    default = {"replicas": 1, "decide": False, "max_replicas": 10}
    with pytest.raises(ConfigError, match=message):
        replicas.check(OmegaConf.create({"sweep": {**default, **settings}}), swept)


def test_a_seed_for_a_share_without_a_share_is_refused(records: Path) -> None:
    config = config_of(f"data.train={records}", f"data.eval={records}", "data.eval_seed=1")
    with pytest.raises(ConfigError, match=r"data\.eval_seed=1 chooses a share"):
        mixture.Mixture(config.data, config.seed)
