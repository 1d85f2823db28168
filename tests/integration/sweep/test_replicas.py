"""A sweep with several seeds of each point, from real runs; further seeds are run when it is resumed."""

import json
from pathlib import Path

import pytest

from conftest import run_script
from hydraft.evaluation.record_scores import FILE
from hydraft.sweep.results import ledger, points, reading, verdict
from hydraft.sweep.results.ledger import Ledger, State


def test_each_point_is_run_with_several_seeds_and_further_ones_are_added(records: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    command = [
        "train.py", "-m", f"data.train={records}", "data.eval=25%", "lora.r=2,4", "train.max_steps=2", "quant=none",
        "data.eval_max_new_tokens=2", "sweep.replicas=2", "train.learning_rate=1e-3",
    ]  # fmt: skip
    done = run_script(*command, f"hydra.sweep.dir={folder}")
    assert done.returncode == 0, done.stderr
    first = ["r=2", "r=2,seed=43", "r=4", "r=4,seed=43"]
    assert [job.name for job in Ledger(folder).jobs().values()] == first
    found = reading.read(folder)
    assert found.findings and "95 % interval" in done.stdout
    for point in found.outcomes:
        assert isinstance(point, points.Point)
        by_record = verdict.scores(point, "held-out loss", 0)
        assert by_record.table.shape == (2, 6) and by_record.seeds == (42, 43)
        losses = [one.result["after"]["loss"] for one in point.members]
        assert by_record.table.mean(1).tolist() == pytest.approx(losses, rel=1e-6)
        matches = verdict.scores(point, "exact_match", 0).table.mean(1).tolist()
        assert matches == pytest.approx([one.result["after"]["exact_match"] for one in point.members])

    about = ledger.read_about(folder)  # as if a decision to run a third seed of one point had been interrupted
    key = next(iter(Ledger(folder).jobs()))
    (folder / ledger.ABOUT).write_text(json.dumps({**about, "decide": {"points": [key], "seeds": 3}, "looks": 2}))
    more = run_script(*command, "sweep.decide=true", f"sweep.resume={folder}")
    assert more.returncode == 0, more.stderr
    jobs = Ledger(folder).jobs().values()
    assert [job.name for job in jobs] == [*first, "r=2,seed=44"]
    assert all(job.state is State.done and job.attempt == 1 for job in jobs)
    digests = {
        tuple(json.loads(line)["digest"] for line in (folder / job.name / FILE).read_text().splitlines())
        for job in jobs
    }
    assert len(digests) == 1  # the same records are held out with every seed
    assert {point.job.name: point.seeds for point in reading.read(folder).outcomes} == {"r=2": 3, "r=4": 2}


def test_several_seeds_are_for_a_sweep(tmp_path: Path) -> None:
    done = run_script("train.py", "sweep.replicas=3")
    assert done.returncode == 2 and "sweep.replicas=3: is for a sweep: add -m" in done.stderr
    basic = ["hydra/sweeper=basic", "hydra/launcher=basic", f"hydra.sweep.dir={tmp_path}/sweep"]
    done = run_script("train.py", "-m", *basic, "sweep.replicas=3", "lora.r=2,4")
    assert done.returncode == 2 and "sweep.replicas=3: is for hydra/sweeper=grid and" in done.stderr
