"""Steps of bench-gpu: a time limit for each and one for all, and a step does not affect the others."""

import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.gpu import steps
from bench.gpu.steps import Budget, Part, Step, run
from bench.processes import runs
from conftest import SCALE

BASH = ("bash", "-c")


class Clock:
    """A clock that the test sets, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def outcomes(part: Part, budget: Budget, logs: Path) -> dict[str, steps.Outcome]:
    import os

    return {outcome.name: outcome for outcome in run(part, budget, logs, os.environ)}


def test_a_step_gets_its_limit_or_the_time_left() -> None:
    clock = Clock()
    budget = Budget(100, clock)
    step = Step("x", 60, ("true",))
    assert budget.grant(step) == 60
    clock.seconds = 70
    assert budget.grant(step) == 30
    assert budget.grant(Step("x", 60, ("true",), reserve=31)) is None
    assert budget.grant(Step("x", 60, ("true",), reserve=30)) == 30
    clock.seconds = 100 - steps.SHORTEST + 0.5
    assert budget.grant(step) is None
    assert budget.spent + budget.left == 100


def test_steps_after_the_time_limit_are_recorded(tmp_path: Path) -> None:
    clock = Clock()
    budget = Budget(100, clock)
    found = {}
    part = Part("p", tuple(Step(name, 30, ("true",)) for name in "abc"))
    for outcome in run(part, budget, tmp_path, {}):
        found[outcome.name] = outcome
        clock.seconds += 45
    assert [found[name].status for name in "abc"] == ["ok", "ok", steps.NO_TIME]
    assert found["b"].limit == 30
    assert not (tmp_path / "c.log").exists()


def test_a_failed_step_does_not_stop_the_others(tmp_path: Path) -> None:
    part = Part(
        "p",
        (
            Step("bad", 20, (*BASH, "echo one; echo the reason; exit 3")),
            Step("not there", 20, ("/no/such/command",)),
            Step("skipped", 20, ("true",), skip="needs a GPU"),
            Step("good", 20, (*BASH, "echo $WORD"), environment={"WORD": "hello"}),
        ),
    )
    found = outcomes(part, Budget(100), tmp_path)
    assert found["bad"].status == "failed (code 3)"
    assert found["bad"].said == "the reason"
    assert found["not there"].status.startswith("failed (")
    assert found["skipped"].status == "skipped: needs a GPU"
    assert (found["good"].status, found["good"].said) == ("ok", "hello")


def test_the_time_limit_ends_every_process_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "SHORTEST", 0)
    monkeypatch.setattr(steps, "GRACE", 0.5)
    deaf = f"{sys.executable} -c 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)'"
    part = Part("p", (Step("slow", 2, (*BASH, f"{deaf} & echo $!; wait")), Step("next", 20, ("true",))))
    began = time.monotonic()
    found = outcomes(part, Budget(100), tmp_path)
    assert found["slow"].status == "out of time"
    assert found["next"].status == "ok"
    assert time.monotonic() - began < 20 * SCALE
    child = int((tmp_path / "slow.log").read_text().split()[0])
    assert not psutil.pid_exists(child) or not runs(psutil.Process(child))


def test_steps_run_concurrently_but_after_their_dependencies(tmp_path: Path) -> None:
    log = tmp_path / "order"
    part = Part(
        "p",
        (
            Step("a", 20, (*BASH, f"sleep 1; echo a >> {log}")),
            Step("c", 20, (*BASH, f"echo c >> {log}"), after=("a",)),
            Step("b", 20, (*BASH, f"echo b >> {log}")),
        ),
        at_once=2,
    )
    assert {outcome.status for outcome in outcomes(part, Budget(100), tmp_path).values()} == {"ok"}
    assert log.read_text().split() == ["b", "a", "c"]


def test_the_folder_of_an_earlier_call_is_removed_first(tmp_path: Path) -> None:
    old = tmp_path / "run"
    (old / "inner").mkdir(parents=True)
    part = Part("p", (Step("x", 20, (*BASH, f"test ! -e {old}"), replaces=old),))
    assert outcomes(part, Budget(100), tmp_path)["x"].status == "ok"
    left = tmp_path / "kept"
    left.mkdir()
    part = Part("p", (Step("y", 20, ("true",), replaces=left),))
    assert outcomes(part, Budget(5), tmp_path)["y"].status == steps.NO_TIME
    assert left.is_dir(), "a step that is not started removes nothing"


def test_a_caller_that_stops_leaves_no_process(tmp_path: Path) -> None:
    part = Part("p", (Step("quick", 20, ("true",)), Step("slow", 60, (*BASH, "echo $$; sleep 60"))), at_once=2)
    import os

    outcomes_of_run = run(part, Budget(100), tmp_path, os.environ)
    next(outcomes_of_run)
    while not (tmp_path / "slow.log").read_text():
        time.sleep(0.05)
    pid = int((tmp_path / "slow.log").read_text())
    outcomes_of_run.close()
    assert not psutil.pid_exists(pid)
