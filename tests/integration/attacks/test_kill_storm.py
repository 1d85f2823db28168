"""A sweep whose processes are killed one after another, and which is resumed, ends as one that nobody has disturbed."""

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import psutil
import pytest

from bench.processes import runs
from conftest import SCALE, family, start_script, wait_for
from hydraft.checkpoint import manifest
from hydraft.sweep.results.ledger import Job, Ledger, State

STEPS = 60


class Sweep:
    """A sweep of three jobs, one at a time, in a folder of its own, with a folder of its own for temporary files."""

    def __init__(self, folder: Path, records: Path) -> None:
        self.folder, self.temporary = folder / "sweep", Path(tempfile.mkdtemp())  # a short path: sockets lie there
        folder.mkdir()
        self.command = [
            "-m", "hydra.launcher.pack=off", "quant=none", "data.eval=null", f"data.train={records}", "train.log_every=1",
            "train.micro_batch_size=2",
            f"train.max_steps={STEPS}", "train.save_every=10", "train.keep_last=99", "seed=0,1,2", "hydra.launcher.jobs=1",
        ]  # fmt: skip
        self.started: list[ForkServerProcess] = []

    def start(self, *more: str) -> ForkServerProcess:
        """Start it, or resume it."""
        streams = self.folder.with_name(f"streams-{len(self.started)}")
        streams.mkdir()
        where = f"sweep.resume={self.folder}" if self.started else f"hydra.sweep.dir={self.folder}"
        temporary = str(self.temporary)
        self.started.append(start_script("train.py", *self.command, where, *more, streams=streams, TMPDIR=temporary))
        return self.started[-1]

    @property
    def printed(self) -> str:
        """What the last start has printed."""
        streams = self.folder.with_name(f"streams-{len(self.started) - 1}")
        return "".join((streams / name).read_text() for name in ("out", "err"))

    def rank(self, job: psutil.Process) -> psutil.Process:
        """The rank of a job: the process whose output is its log."""
        below = job.children()
        return next(rank for rank in below if Path(f"/proc/{rank.pid}/fd/1").readlink().name == "rank-0.log")

    def job(self, seed: int) -> Job:
        """A job as the ledger has it."""
        return self.jobs()[f"seed={seed}"]

    def jobs(self) -> dict[str, Job]:
        """All jobs that the ledger has, by name."""
        return {job.name: job for job in Ledger(self.folder).jobs().values()} if self.folder.exists() else {}

    def is_in(self, seed: int, state: State) -> Callable[[], bool]:
        """Whether a job is in a state."""
        return lambda: f"seed={seed}" in self.jobs() and self.job(seed).state is state

    def saves(self, seed: int) -> psutil.Process:
        """Wait until a job has saved one more checkpoint in this start; its process."""
        run = self.folder / f"seed={seed}"
        before = len(manifest.checkpoints(run))
        wait_for(lambda: len(manifest.checkpoints(run)) > before, 240, f"a checkpoint of seed={seed}")
        return psutil.Process(self.job(seed).pid)

    def outcome(self, seed: int) -> tuple[object, bytes, list[int]]:
        """Objective, adapter and logged steps of a job."""
        run = self.folder / f"seed={seed}"
        lines = (run / "metrics.jsonl").read_text().splitlines()
        adapter = (run / "adapter" / "adapter_model.safetensors").read_bytes()
        return self.job(seed).objective, adapter, [json.loads(line)["step"] for line in lines]


@pytest.fixture
def sweeps(tmp_path: Path, records: Path) -> Iterator[list[Sweep]]:
    """Two equal sweeps; processes that are left after the test are killed."""
    made = [Sweep(tmp_path / name, records) for name in ("undisturbed", "storm")]
    yield made
    for process in (process for sweep in made for process in sweep.started):
        process.kill()
        process.join()
    for sweep in made:
        shutil.rmtree(sweep.temporary)


def ended(processes: list[psutil.Process]) -> Callable[[], bool]:
    """Whether none of the processes runs."""
    return lambda: not any(map(runs, processes))


def test_a_sweep_whose_processes_are_killed_in_turn_ends_as_an_undisturbed_one(sweeps: list[Sweep]) -> None:
    undisturbed, storm = sweeps
    reference = undisturbed.start()

    sweep = storm.start()
    storm.rank(storm.saves(0)).kill()
    wait_for(storm.is_in(0, State.failed), 30, "the end of a job whose rank was killed")
    storm.saves(2)
    done = (storm.folder / "seed=1" / "result.json").stat().st_mtime_ns
    everything = family(sweep.pid or 0)
    sweep.kill()
    sweep.join(10 * SCALE)
    wait_for(ended(everything), 10, "the end of all processes")
    assert storm.job(2).state is State.running, "no process was left to record another state"
    assert "seed=0: failed: rank 0 failed: killed by SIGKILL" in storm.printed
    assert list(storm.temporary.iterdir()) != [], "nothing was left to remove"

    sweep = storm.start("sweep.retry_failed=true")
    job = storm.saves(0)
    below = family(job.pid)
    job.kill()
    storm.saves(2)
    everything = [*below, *family(sweep.pid or 0)]
    os.kill(sweep.pid or 0, signal.SIGINT)
    sweep.join(30 * SCALE)
    wait_for(ended(everything), 10, "the end of all processes")
    assert (sweep.exitcode, storm.job(2).state) == (130, State.interrupted)
    assert f"sweep.resume={storm.folder}" in storm.printed

    sweep = storm.start("sweep.retry_failed=true")
    server = storm.saves(2).parent()  # that jobs are forked from
    assert server is not None and server.pid != sweep.pid
    server.kill()
    sweep.join(60 * SCALE)
    assert (sweep.exitcode, storm.job(2).state) == (1, State.failed)
    assert "seed=2: failed: the server that jobs are forked from was killed by SIGKILL" in storm.printed

    sweep = storm.start("sweep.retry_failed=true")
    for one, process in ((storm, sweep), (undisturbed, reference)):
        process.join(300 * SCALE)
        assert process.exitcode == 0, one.printed
        assert list(one.temporary.iterdir()) == []
    for seed in range(3):
        assert storm.outcome(seed) == undisturbed.outcome(seed)
        assert storm.outcome(seed)[2] == list(range(1, STEPS + 1)), "every step must be logged once"
    assert [storm.job(seed).attempt for seed in range(3)] == [3, 1, 4]
    assert (storm.folder / "seed=1" / "result.json").stat().st_mtime_ns == done, "a completed job was run again"
    assert "resuming from step-" in (storm.folder / "seed=2" / "job.log").read_text()
