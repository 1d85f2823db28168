"""A search with real runs: it stops a job that falls behind, and resumes; invalid searches are refused."""

import json
from pathlib import Path

import pytest

from conftest import run_script
from hydraft.sweep.results.ledger import Ledger, State

GRID = ["-m", "hydra/sweeper=search", "hydra.sweeper.sampler=grid"]
MEDIAN = ["hydra.sweeper.pruner=median", "+hydra.sweeper.pruner_options.n_startup_trials=1"]


def test_a_job_that_falls_behind_is_stopped_and_the_search_continues(records: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    run = [
        f"data.train={records}", f"data.eval={records}", "train.max_steps=16", "train.eval_every=4",
        "train.eval_loss_only=true", "data.eval_max_new_tokens=1", "hydra.launcher.jobs=1",
    ]  # fmt: skip
    new = f"hydra.sweep.dir={folder}"
    first = run_script("train.py", *GRID, *MEDIAN, *run, new, "train.learning_rate=2e-3,1e-6", "hydra.sweeper.trials=1")
    assert first.returncode == 0, first.stderr
    repeated = [f"sweep.resume={folder}", "train.learning_rate=2e-3,1e-6"]
    second = run_script("train.py", *GRID, *MEDIAN, *run, *repeated)
    assert second.returncode == 0, second.stderr
    jobs = list(Ledger(folder).jobs().values())
    assert [(job.name, job.state, job.attempt) for job in jobs] == [
        ("lr=0.002", State.done, 1),
        ("lr=1e-06", State.pruned, 1),
    ]
    steps = [json.loads(line)["step"] for line in (folder / "lr=1e-06" / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) < 16
    assert "1 done, 1 pruned" in second.stdout
    third = run_script("train.py", *GRID, *MEDIAN, *run, *repeated)  # nothing is left to do
    assert third.returncode == 0 and all(job.attempt == 1 for job in Ledger(folder).jobs().values())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.r=8"], "nothing to search"),
        (["lora.r=4,8", "hydra.sweeper.pruner=median"], "add train.eval_every=epoch"),
        (["lora.r=4,8", "hydra.sweeper.sampler=best"], "hydra.sweeper.sampler=best: no such sampler"),
        (
            ["lora.r=4,8", "sweep.objective=[loss,memory]", "train.eval_every=2", "hydra.sweeper.pruner=median"],
            "by one",
        ),
        (["lora.r=int(interval(0,8))"], "lora.r=0"),
    ],
)
def test_invalid_searches_are_refused(overrides: list[str], message: str, tmp_path: Path) -> None:
    done = run_script("train.py", "-m", "hydra/sweeper=search", f"hydra.sweep.dir={tmp_path}/sweep", *overrides)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert not list(tmp_path.glob("sweep/*/config.yaml"))
