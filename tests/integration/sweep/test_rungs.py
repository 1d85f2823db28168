"""Runs that stop at a rung and train on: alone under DeepSpeed, in a search with halving, and in one with a budget of time."""

import json
import re
from pathlib import Path

import pytest

from bench import packs, resume
from bench.equivalence import compose_run, read
from conftest import RECORDS, run_script
from hydraft.checkpoint import manifest
from hydraft.errors import RunStopped
from hydraft.sweep.results.ledger import Ledger, State

STEPS = 8
BEST, RATES = "lr=0.002", "2e-3,5e-4,1e-5,1e-6"


def settings(records: Path) -> list[str]:
    """Of every run here; with this eps, Adam does not make a whole step of the rounding of a small gradient (``bench/packs.py``).

    With fewer records in a batch, the steps themselves multiply rounding: with two, another number of threads changes a gradient norm by 2e-6.
    """
    return [
        f"data.train={records}", f"data.eval={records}", "data.eval_limit=8", "data.eval_max_new_tokens=1", "quant=none",
        "lora.r=2", "train.warmup_ratio=0", f"train.max_steps={STEPS}", "train.eval_every=2", "train.eval_loss_only=true",
        "train.log_every=1", "train.micro_batch_size=8", "train.gradient_checkpointing=false", "optimizer.eps=1e-3",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("records") / "records.json"
    file.write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def alone(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best candidate of the searches, trained as a run of its own that never stops."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    resume.train(compose_run([*settings(shared), "train.learning_rate=2e-3"]), folder)
    return folder


def steps(run: Path) -> list[int]:
    """The steps that a run has logged, in their order."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "loss" in line]


def test_a_run_that_stops_at_a_rung_ends_bit_equal_to_one_that_never_stopped(
    shared: Path, alone: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    given = [*settings(shared), "train.learning_rate=2e-3"]
    with pytest.raises(RunStopped) as stopped:
        resume.train(compose_run([*given, "sweep.stop_at=4"]), folder)
    assert stopped.value.step == 4
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["step"]) == ("preempted", 4)
    assert [manifest.step_of(checkpoint) for checkpoint in manifest.checkpoints(folder)] == [4]
    assert steps(folder) == [1, 2, 3, 4]
    resume.train(compose_run(given), folder)
    assert steps(folder) == list(range(1, STEPS + 1))
    assert resume.differs(folder, alone) is None


def test_halving_trains_the_best_to_the_end_as_a_run_alone(shared: Path, alone: Path, tmp_path: Path) -> None:
    """Rungs at 2 and 4 of 8 steps: four candidates, two, one, in one pack that they leave and join."""
    folder = tmp_path / "sweep"
    done = run_script(
        "train.py", "-m", "sweep=halving", *settings(shared), f"train.learning_rate={RATES}", "hydra.launcher.jobs=1",
        "+hydra.sweeper.pruner_options.reduction_factor=2", f"hydra.sweep.dir={folder}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    jobs = list(Ledger(folder).jobs().values())
    name = next(job.name for job in jobs if job.name.endswith(BEST))
    assert sorted(steps(folder / job.name)[-1] for job in jobs) == [2, 2, 4, STEPS]
    assert {job.name: job.state for job in jobs if job.state is not State.pruned} == {name: State.done}
    assert sorted(job.attempt for job in jobs) == [1, 1, 2, 3]
    events = map(json.loads, Ledger(folder).file.read_text().splitlines())
    assert len({event["pid"] for event in events if event["state"] == State.running.value}) == 1, "one pack"
    assert steps(folder / name) == list(range(1, STEPS + 1))
    for job in jobs:
        result = json.loads((folder / job.name / "result.json").read_text())
        assert result["status"] == ("completed" if job.name == name else "pruned")
    apart = packs.apart(read(folder / name), read(alone))
    assert max(apart) < packs.TOLERANCE, apart


def test_a_budget_of_time_ends_a_search(shared: Path, tmp_path: Path) -> None:
    """How many candidates there is time for depends on the machine, but one is always done."""
    folder, points = tmp_path / "sweep", 12
    done = run_script(
        "train.py", "-m", "sweep=halving", *settings(shared), "lora.r=2,4,8", "train.learning_rate=1e-4,5e-4,1e-3,2e-3",
        "hydra.launcher.jobs=1", "sweep.budget=15", f"hydra.sweep.dir={folder}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert 0 <= said.find("budget 15 s: ") < said.find(": running")
    assert re.search(
        r"budget 15 s: \d+ candidates?, rungs at 2 steps, \d+ at full length; about .* s a step for \d+ at once", said
    )
    jobs = Ledger(folder).jobs().values()
    states = [job.state for job in jobs]
    saved, dropped = states.count(State.interrupted), states.count(State.pending)
    left = points - len(jobs) + dropped
    assert states.count(State.done) >= 1
    assert states.count(State.done) + states.count(State.pruned) + saved + dropped == len(jobs)
    assert (re.search(rf"\b{left} points? (was|were) not started", said) is not None) == (left > 0)
    assert (re.search(rf"\b{saved} jobs? (was|were) saved", said) is not None) == (saved > 0)
    for job in jobs:
        run = folder / job.name
        if job.state is State.pending:
            assert not run.exists()
        elif job.state is not State.interrupted or (run / "result.json").exists():  # not before its first step
            result, last = json.loads((run / "result.json").read_text()), steps(run)[-1]
            expected = {State.done: ("completed", STEPS), State.pruned: ("pruned", 2)}
            assert (result["status"], last) == expected.get(job.state, ("preempted", last)), job
            assert job.objective == (result["objective"] if job.state is State.done else None)
