"""What fits into a budget of time: the estimate, and searches over simulated jobs whose times vary."""

import dataclasses
import itertools
from pathlib import Path

import pytest
from optuna.storages import InMemoryStorage

from hydraft.config import duration
from hydraft.config.schema import Config
from hydraft.sweep import budget, pace
from hydraft.sweep.budget import Pace
from hydraft.sweep.results.ledger import State
from hydraft.system.hardware import Hardware
from simulated_pool import Machine, Pool, leave_out_what_only_others_need, score


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_what_only_others_need(monkeypatch)


SPACE = ["lora.r=2,4,8,16", "train.learning_rate=tag(log, interval(1e-4, 1e-1))"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("45s", 45), ("3600", 3600), ("1h1m1s", 3661)],
)
def test_times_are_read(text: str, seconds: float) -> None:
    assert duration.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "h", "-5m", "5 m", "30m2h", "1d", "nan", "inf", "1e3"])
def test_other_texts_are_no_times(text: str) -> None:
    assert duration.seconds(text) is None


def test_the_largest_number_that_fits_is_that_of_a_count() -> None:
    """Against counting up, for several machines."""
    for places, start, shared, factor in itertools.product((1, 3, 8), (0.0, 2.0), (0.0, 0.4, 1.0), (2, 3)):
        found = Pace(places, 0.5, start, shared=shared)
        for left in (1.0, 60.0, 300.0):
            fits = [n for n in range(1, 300) if budget.seconds(found, n, [10, 20, 60], factor) <= left]
            assert budget.largest(found, left, [10, 20, 60], factor, 299) == max(fits, default=0)


def test_the_schedule_of_a_budget_is_told() -> None:
    found = budget.schedule(7200, Pace(8, 0.31 * 8, shared=0.0), (50, 150), 450, 3)
    assert found.candidates == budget.counts(found.candidates[0], 3, 3) and 0.97 * 7200 < found.seconds <= 7200
    assert found.text.startswith(
        f"budget 2 h: {found.candidates[0]} candidates, rungs at 50, 150 steps, {found.candidates[-1]} at full"
    )


MACHINES = {
    "a pack": Machine(8, 4.0, 0.3, 2.0, 0.2),
    "a pack on a CPU": Machine(8, 4.0, 0.0, 4.0, 0.4),
    "processes": Machine(2, 1.0, 1.0, 8.0, 0.3),
    "one that gets slower": Machine(8, 4.0, 0.3, 2.0, 0.2, slower=1.5, until=3000),
    "one that gets faster": Machine(4, 2.0, 0.5, 4.0, 0.2, slower=0.6, until=3000),
    "packs too large to end in time": Machine(16, 40.0, 0.2, 5.0, 0.2, slots=2),
}


@pytest.mark.parametrize(
    ("name", "pruner"),
    [
        *((name, "successive_halving") for name in list(MACHINES)[:-1]),
        *((name, "none") for name in ("a pack", "processes", "packs too large to end in time")),
    ],
)
def test_a_search_ends_within_a_tenth_of_its_budget(
    name: str, pruner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is known before; the times of steps vary. No command resumes the search, so it is kept in memory."""
    monkeypatch.setattr("hydraft.sweep.study.JournalStorage", lambda backend: InMemoryStorage())
    pool = Pool(tmp_path / "sweep", MACHINES[name], total=90, every=10, seed=5)
    jobs = pool.search(SPACE, {"pruner": pruner}, budget=3000)
    pool.run(jobs)
    states = [job.state for job in jobs.session.ledger.jobs().values()]
    assert states.count(State.done) >= 1
    assert 0.9 * 3000 <= pool.now <= 1.1 * 3000, (pool.now, len(states), states.count(State.done))


def test_points_without_time_are_left_for_a_later_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a grid of 24 points those that end in time are run, from all over the grid."""
    grid, settings = (
        ["lora.r=1,2,3,4,5,6", "train.learning_rate=1e-4,1e-3,2e-3,1e-2"],
        {"sampler": "grid", "pruner": "none"},
    )
    pool = Pool(tmp_path / "sweep", Machine(4, 1.0, 0.5, 2.0, 0.1), total=90, every=10)
    jobs = pool.search(grid, settings, budget=300)
    pool.run(jobs)
    states = [job.state for job in jobs.session.ledger.jobs().values()]
    done = states.count(State.done)
    assert 0.9 * 300 <= pool.now <= 1.1 * 300 and 8 <= done < 24
    saved = states.count(State.interrupted)
    assert len(states) == done + saved == done + len(jobs.left_out)
    parts = [f"{24 - len(states)} points were not started"]
    parts += [] if not saved else ["1 job was saved" if saved == 1 else f"{saved} jobs were saved"]
    assert f" used; {', '.join(parts)}: sweep.resume=sweep runs them" in capsys.readouterr().out
    ranks = {job.name.partition(",")[0] for job in jobs.session.ledger.jobs().values() if job.state is State.done}
    assert len(ranks) >= 4
    later = pool.search(grid, settings)
    later.limits.budget = None
    pool.run(later)
    assert [job.state for job in later.session.ledger.jobs().values()] == [State.done] * 24


def test_a_budget_that_is_used_up_saves_all_but_the_best_job(tmp_path: Path) -> None:
    """Jobs take ten times as long as it was known."""
    pool = Pool(tmp_path / "sweep", Machine(4, 10.0, 1.0, 1.0), total=90, every=10)
    jobs = pool.search(
        ["lora.r=1,2,3,4", "train.learning_rate=1e-3,2e-3"],
        {"sampler": "grid", "pruner": "none"},
        200,
        known=[Pace(4, 1.0, 1.0)],
    )
    pool.run(jobs)
    found = jobs.session.ledger.jobs().values()
    assert [job.state for job in found].count(State.done) == 1
    assert [job.state for job in found].count(State.interrupted) == 3
    started = [job for job in found if job.state in (State.done, State.interrupted)]
    best = min(started, key=lambda job: score(job.overrides))
    assert best.state is State.done
    assert all(pool.trained[job.name] < 90 for job in started if job is not best)


def test_a_job_that_waited_too_long_for_a_process_is_not_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was taken while there was time for it, for a kind of process of which none was free."""
    grid, settings = ["lora.r=1,2", "train.learning_rate=1e-3,2e-3"], {"sampler": "grid", "pruner": "none"}
    pool = Pool(tmp_path / "sweep", Machine(), total=90, every=10)
    jobs = pool.search(grid, settings, budget=200, known=[Pace(2, 1.0, 1.0)])
    with jobs:
        first, second = (task[0] for task in (jobs.next(), jobs.next()) if task is not None)
        assert jobs.may_start(first)
        pool.now = 150.0
        assert not jobs.may_start(second) and second not in jobs.meter.jobs
        assert not jobs.waits() or jobs.next() is None
    assert "3 min 20 s: 2 min 30 s used; 3 points were not started: sweep.resume=sweep" in capsys.readouterr().out
    later = pool.search(grid, settings)
    pool.run(later)
    assert [job.state for job in later.session.ledger.jobs().values()] == [State.done] * 4


def test_how_a_step_depends_on_the_number_of_jobs_is_measured_before_there_are_many() -> None:
    """Against the machine that is simulated: two jobs at once, then twice as many as were measured each time."""
    now, fixed, each = 0.0, 0.2, 0.05
    meter = pace.Meter(now=lambda: now)
    reached, step = [], dict.fromkeys(range(2), 0)
    while len(step) <= 16:
        for number in step.keys() - meter.jobs.keys():
            meter.start(number)
        for _ in range(4):
            now += fixed + each * len(step)
            for number in step:
                step[number] += 1
                meter.saw(number, step[number])
        reached.append(meter.reached)
        found = meter.paces()
        if len(reached) > 1:
            (one,) = found
            assert (one.step, one.shared * one.step) == pytest.approx((fixed + each * len(step), fixed))
        step |= dict.fromkeys(range(2 * meter.reached), 0) | step
    assert reached == [2, 4, 8, 16]


def test_times_are_measured_and_kept(tmp_path: Path) -> None:
    """Two jobs at once take 0.3 s a step each, one alone 0.2 s, so 0.1 s do not depend on how many there are; 2 s to start."""
    now = 0.0
    meter = pace.Meter(now=lambda: now)
    for number in (0, 1):
        meter.start(number)
    for step in range(1, 11):
        now = 2.0 + 0.3 * step
        for number in (0, 1):
            meter.saw(number, step)
    first, second = meter.paces()
    assert (first.shared, second.shared) == (1, 0), "how a step depends on the number of jobs is not seen yet"
    assert (first.step, first.start, first.end) == pytest.approx((0.3, 4.0, 2.0)), (
        "an end like the start, until it is seen"
    )
    assert meter.steps_left({0: 12, 1: 10}) == [2 + 7, 7]
    meter.end(0, 10)
    for step in range(11, 21):
        now = 5.0 + 0.2 * (step - 10)
        meter.saw(1, step)
    found = meter.pace()
    assert found is not None and found.places == 2
    assert (found.step, found.start, found.end, found.shared) == pytest.approx((0.3, 2.0, 0.0, 1 / 3))
    assert meter.paces() == [found] and meter.reached == 2
    assert found.share(1) == pytest.approx(2 / 3)
    pace.save(tmp_path / "pace" / "x.json", [found])
    assert pace.load(tmp_path / "pace" / "x.json") == [found]
    (tmp_path / "pace" / "x.json").write_text('[{"places": 0, "step": -1}]')
    assert pace.load(tmp_path / "pace" / "x.json") == pace.load(tmp_path / "none") == []


def test_known_times_are_those_of_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path))

    def file(config: Config, *axes: str, cores: int = 2) -> Path:
        return pace.file_of(config, axes, Hardware((), cores, 2**30), "pool")

    config = Config()
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, learning_rate=1e-3, max_steps=9))
    larger = dataclasses.replace(config, lora=dataclasses.replace(config.lora, r=64))
    assert file(config) == file(other)  # no time depends on what differs
    assert file(config) != file(larger)
    assert file(config, "lora.r") == file(larger, "lora.r") and file(config, "lora") == file(larger, "lora")
    assert file(config) != file(config, cores=4)
