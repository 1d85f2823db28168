"""Successive halving and Hyperband: which candidates train on, as in the papers and as in Optuna; a search that is killed resumes."""

import random
from pathlib import Path

import pytest
from optuna.pruners import HyperbandPruner

from hydraft.errors import ConfigError
from hydraft.sweep import halving
from hydraft.sweep.halving import Halving
from hydraft.sweep.results.ledger import State
from simulated_pool import Machine, Pool, leave_out_what_only_others_need, score


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_what_only_others_need(monkeypatch)


GRID = ["lora.r=1,2,3,4,5,6,7,8", "train.learning_rate=1e-4,3e-4,5e-4,1e-3,2e-3,4e-3,7e-3,1e-2"]


def test_rungs_grow_by_the_factor_and_leave_the_last_one_its_length() -> None:
    assert halving.rungs(50, 450, 3) == (50, 150)
    assert halving.rungs(50, 1350, 3) == (50, 150, 450)
    assert halving.rungs(4, 48, 3) == (4, 12)  # not 36, which would be compared shortly before the end
    assert halving.rungs(10, 15, 3) == (10,)
    assert halving.rungs(10, 10, 3) == ()


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_brackets_have_the_sizes_of_optunas(factor: int) -> None:
    """Optuna's ``HyperbandPruner`` computes algorithm 1 of arXiv:1603.06560, too."""
    for levels in range(1, 5):
        pruner = HyperbandPruner(1, factor**levels, factor)
        pruner._n_brackets = levels + 1  # set when the first trial is seen
        theirs = [pruner._calculate_trial_allocation_budget(index) for index in range(levels + 1)]
        count = halving.one_round(levels, factor)
        assert count == sum(theirs)
        assert halving.sizes("hyperband", count, levels, factor) == [(size, index) for index, size in enumerate(theirs)]
    assert halving.sizes("hyperband", 90, 2, 3) == [(9, 0), (5, 1), (3, 2)] * 5 + [(5, 0)]
    assert halving.sizes("successive_halving", 90, 2, 3) == [(90, 0)]


@pytest.mark.parametrize("minimize", [True, False])
def test_the_best_third_trains_on_at_each_rung(minimize: bool) -> None:
    """Against the definition: sort by the objective, keep ⌊n / 3⌋; with 27 candidates in any order of their ends."""
    dice = random.Random(3)
    search = Halving((1, 3, 9), minimize, [(27, 0)], halving.by_factor(3))
    left = {search.enter(number)[1].number for number in range(27)}
    for step in (1, 3, 9):
        values = {number: dice.random() for number in left}
        order = list(left)
        dice.shuffle(order)
        for place, number in enumerate(order):
            assert search.decide() == ([], [])
            assert search.stop(number) == step
            search.reached(number, step, values[number])
            if place == len(order) - 1:
                assert search.decide(running=[number]) == ([], [])  # it still saves
        best = sorted(left, key=values.__getitem__, reverse=not minimize)[: len(left) // 3]
        on, out = search.decide()
        assert [member.number for member in on] == best
        assert {member.number for member in out} == left - set(best)
        left = set(best)
    assert [search.stop(number) for number in left] == [None]


def test_a_failed_candidate_holds_up_no_rung_and_nan_is_the_worst() -> None:
    search = Halving((1,), True, [(3, 0)], halving.by_factor(2))
    members = [search.enter(number)[1] for number in range(3)]
    members[0].over = True  # it failed
    search.reached(1, 1, float("nan"))
    search.reached(2, 1, 9.0)
    on, out = search.decide()
    assert ([one.number for one in on], [one.number for one in out]) == ([2], [1])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"min_early_stopping_rate": 1}, "has no min_early_stopping_rate, only min_resource"),
        ({"reduction_factor": 1}, "reduction_factor must be a whole number, at least 2"),
        ({"min_resource": 0.5}, "min_resource must be a whole number"),
    ],
)
def test_impossible_options_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        halving.options("hyperband", given)


def test_the_first_rung_is_a_step_with_an_evaluation() -> None:
    assert halving.first_rung("hyperband", halving.Options(min_resource=20), 10) == 20
    with pytest.raises(ConfigError, match=r"set train\.eval_every to a number of steps"):
        halving.first_rung("hyperband", halving.Options(), "epoch")
    with pytest.raises(ConfigError, match=r"must be a multiple of train\.eval_every=10"):
        halving.first_rung("hyperband", halving.Options(min_resource=15), 10)


def test_the_best_of_64_is_found_with_a_fraction_of_the_steps(tmp_path: Path) -> None:
    """64 candidates over 8 places: 64, 21, 7 train to the rungs and the end, and the best of the grid is one that is done."""
    pool = Pool(tmp_path / "sweep", Machine(), total=90, every=10)
    jobs = pool.search(GRID, {"sampler": "grid"})
    pool.run(jobs)
    states = [job.state for job in jobs.session.ledger.jobs().values()]
    assert (states.count(State.done), states.count(State.pruned)) == (7, 57)
    assert sorted(pool.trained.values()) == [10] * 43 + [30] * 14 + [90] * 7
    best = jobs.search.best()[0]
    rates = GRID[1].partition("=")[2].split(",")
    assert best.value == min(
        score([f"lora.r={r}", f"train.learning_rate={rate}"]) for r in range(1, 9) for rate in rates
    )


@pytest.mark.parametrize("killed", [1.0, 20.0, 35.0, 45.0])
def test_a_killed_search_resumes_and_prunes_the_same_candidates(killed: float, tmp_path: Path) -> None:
    whole, parts = (Pool(tmp_path / name, Machine(), total=90, every=10) for name in ("whole", "parts"))
    reference = whole.search(GRID, {"sampler": "grid"})
    whole.run(reference)
    with pytest.raises(KeyboardInterrupt):
        parts.run(parts.search(GRID, {"sampler": "grid"}), until=killed)
    parts.running.clear()  # their steps since the last checkpoint are lost
    for file in parts.folder.glob("*/metrics.jsonl"):
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(lines[: parts.trained.get(file.parent.name, 0) // 10]))
    resumed = parts.search(GRID, {"sampler": "grid"})
    parts.run(resumed)
    states = [{job.name: job.state for job in jobs.session.ledger.jobs().values()} for jobs in (reference, resumed)]
    assert states[0] == states[1]
    rungs = [
        sorted(sorted(one.values.items()) for one in jobs.halving.members.values()) for jobs in (reference, resumed)
    ]
    assert rungs[0] == rungs[1]


def test_one_command_at_a_time_runs_such_a_search(tmp_path: Path) -> None:
    first, second = (Pool(tmp_path / "sweep", Machine(), total=90, every=10).search(GRID, {}) for _ in range(2))
    with first, pytest.raises(ConfigError, match=r"sweep\.resume=sweep: another command runs this search"):
        second.__enter__()
    with second:
        pass
