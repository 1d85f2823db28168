"""The live table of a sweep, and its estimate of the time left."""

import io
import json
import time
from pathlib import Path

import pytest
from rich.console import Console

import folders
from hydraft.sweep.results.ledger import Ledger, State
from hydraft.sweep.results.live_table import Live
from hydraft.sweep.results.progress import Follower, Progress

JOBS = [{"lora.r": r, "train.learning_rate": rate} for r in (4, 8, 16, 32) for rate in (1e-3, 2e-3, 4e-3)]


def log(folder: Path, *lines: dict[str, float]) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_a_jobs_progress_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plan.json").write_text('{"steps": 40}')
    log(tmp_path, {"step": 10, "loss": 2.0, "tokens": 9000, "tokens_per_second": 900.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')
    progress = Progress(tmp_path)
    progress.read()
    assert (progress.step, progress.loss, progress.training_left) == (10, 2.0, 30.0)  # 30 steps of one second each
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('ss": 1.5, "tokens": 10800, "tokens_per_second": 1800.0}\n')
    before = progress.offset
    progress.read()
    assert (progress.step, progress.loss, progress.training_left) == (12, 1.5, 14.0)  # twice as fast now
    assert before < progress.offset == (tmp_path / "metrics.jsonl").stat().st_size
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "eval_loss": 3.0}\n')  # restarted
    progress.read()
    assert progress.step == 0


def test_the_time_left_depends_on_the_number_of_concurrent_jobs(tmp_path: Path) -> None:
    states = [State.done] * 4 + [State.running] * 2 + [State.pending] * 6
    folder = folders.make(tmp_path / "sweep", JOBS, states)
    follower = Follower(folder)
    follower.read()
    follower.spent = dict.fromkeys(follower.spent, 100.0)
    now = max(job.started or 0 for job in follower.jobs.values()) + 40
    running = [job for job in follower.jobs.values() if job.state is State.running]
    for job in running:
        assert follower.left(job, now) == pytest.approx(60, abs=5)  # of 100 seconds, which the others took
    assert follower.all_left(now=now) == pytest.approx(60 + 3 * 100, abs=5)  # six pending jobs, two at a time
    assert follower.all_left(side_by_side=8, now=now) == pytest.approx(100, abs=5)  # six of them can start at once
    for job in running:
        follower.running[job.key].speed = 45.0  # 20 steps of 900 tokens: 400 s
    assert follower.left(running[0], now) == pytest.approx(400, abs=5)


def test_no_time_is_estimated_before_a_job_has_run(tmp_path: Path) -> None:
    folder = folders.make(tmp_path / "sweep", JOBS, [State.pending] * 12)
    follower = Follower(folder)
    follower.read()
    assert follower.all_left() is None


def test_the_table_of_200_jobs_fits_the_terminal(tmp_path: Path) -> None:
    jobs = [{"lora.r": r, "train.learning_rate": rate * 1e-4} for r in (4, 8, 16, 32) for rate in range(1, 51)]
    states = [State.done] * 80 + [State.failed] * 5 + [State.running] * 6 + [State.pending] * 109
    folder = folders.make(tmp_path / "many", jobs, states, {82: "CUDA out of memory"}, steps=20)
    console = Console(file=io.StringIO(), width=100, height=24, force_terminal=True)
    live = Live(folder, console=console)
    live.follower.read()
    plain = Console(file=io.StringIO(), width=100, height=24)
    plain.print(live.draw())
    text = plain.file.getvalue()  # type: ignore[attr-defined]
    lines = text.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    assert "80 of 200 done, 109 pending, 6 running, 5 failed" in text
    assert sum("running" in line and "10/20" in line for line in lines) == 6
    assert "that ended earlier" in text
    failed = [line for line in lines if " failed" in line and "of 200" not in line]
    assert len(failed) == 5
    assert any("CUDA out of memory" in line for line in failed)


def test_without_a_terminal_each_change_is_one_line(tmp_path: Path) -> None:
    folder = folders.make(tmp_path / "lines", JOBS[:3], [State.done, State.pending, State.pending])
    stream = io.StringIO()
    sweep_ledger = Ledger(folder)
    jobs = list(sweep_ledger.jobs().values())
    with Live(folder, console=Console(file=stream, width=200)) as live:
        sweep_ledger.record(jobs[1].key, State.running)
        live.refresh()
        live.refresh()  # nothing changed, so nothing is printed
        sweep_ledger.record(jobs[1].key, State.done, objective=0.5)
        sweep_ledger.record(jobs[2].key, State.running)
        live.refresh()
        sweep_ledger.record(jobs[2].key, State.failed, error="rank 0 ran out of memory")
        time.sleep(0.1)
    first, *changes = stream.getvalue().splitlines()
    assert first.startswith(f"{folder}: 1 of 3 done, 2 pending")
    assert changes == [
        f"[1/3] {jobs[1].name}: running",
        f"[2/3] {jobs[1].name}: done in 0 s, objective 0.5",
        f"[2/3] {jobs[2].name}: running",
        f"[3/3] {jobs[2].name}: failed: rank 0 ran out of memory",
    ]
