"""Jobs that share a process of the pool: places, failures, signals, output, and the death of the process."""

import copy
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.types import HydraContext
from omegaconf import OmegaConf, open_dict, read_write

import idle_pack
from hydraft.errors import RunStopped
from hydraft.sweep import pool
from hydraft.sweep.candidate import Packed, failure
from hydraft.sweep.job_status import JobDied
from hydraft.sweep.pool import Batch, Packing
from hydraft.sweep.pool_job import Sweep, Task
from hydraft.sweep.slots import Slot

Job = dict[str, Any]


class Sweeps:
    """Runs trivial jobs in the pool."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        quiet = ["hydra/job_logging=none", "hydra.output_subdir=null"]
        hydra = [f"hydra.sweep.dir={folder}", "hydra.mode=MULTIRUN", *quiet]
        self.composed = compose(overrides=hydra, return_hydra_config=True)

    def task(self, number: int, pack: str | None = "one", **settings: Any) -> Task:
        """A job that submits its number."""
        own = {"job": number, "steps": 20, **settings}
        config = copy.deepcopy(self.composed)
        with read_write(config), open_dict(config):
            config.update(own)
            config.hydra.sweep.subdir = f"job-{number}"
        return Task(number, [f"+{name}={value}" for name, value in own.items()], Packed.of(config), pack)

    def run(self, source: pool.Source, places: int = 8, slots: int = 1, poll: float | None = None, **more: Any) -> None:
        """Run the jobs of ``source``."""
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks())
        config = OmegaConf.create({"hydra": {"sweep": {"dir": str(self.folder)}}})
        packing = Packing(lambda _: places, more.get("asks", False), more.get("make", idle_pack.make))
        sweep = Sweep(context, config, idle_pack.task, Singleton.get_state())
        pool.run(sweep, source, [Slot(1, None)] * slots, "fork", poll, packing)

    def all(self, tasks: Sequence[Task], **how: Any) -> dict[int, JobReturn]:
        """The results of a fixed list of jobs."""
        batch = Batch(tasks)
        self.run(batch, **how)
        return batch.results


@pytest.fixture
def sweeps(tmp_path: Path, hydra_restore_singletons: Any) -> Any:
    with initialize(version_base="1.3", config_path=None):
        yield Sweeps(tmp_path)


def values(results: dict[int, JobReturn], name: str) -> list[Any]:
    return [results[number].return_value[name] for number in sorted(results)]


def test_jobs_are_spread_evenly_over_the_slots_and_computed_together(sweeps: Sweeps) -> None:
    results = sweeps.all([sweeps.task(number) for number in range(8)], slots=2)
    pids = values(results, "pid")
    assert sorted(pids.count(pid) for pid in set(pids)) == [4, 4] and os.getpid() not in pids
    assert values(results, "most") == [4] * 8 and values(results, "steps") == [20] * 8
    for number in range(8):
        assert (sweeps.folder / f"job-{number}" / "job.log").read_text() == f"job {number} prints\njob {number} ends\n"


def test_the_next_job_takes_the_place_of_one_that_ends_in_the_same_process(sweeps: Sweeps) -> None:
    results = sweeps.all([sweeps.task(number, steps=5 + 10 * number) for number in range(5)], places=2)
    assert len(set(values(results, "pid"))) == 1 and values(results, "most") == [2, 2, 2, 2, 2]


def test_jobs_of_different_packs_and_those_alone_have_their_own_processes(sweeps: Sweeps) -> None:
    packs = ["one", "two", None, "one", "two", None]
    results = sweeps.all([sweeps.task(number, pack) for number, pack in enumerate(packs)], slots=2)
    pids, most = values(results, "pid"), values(results, "most")
    assert pids[0] == pids[3] and pids[1] == pids[4] and len(set(pids)) == 4
    assert most == [2, 2, 1, 2, 2, 1]


def test_with_one_place_each_job_has_its_own_process(sweeps: Sweeps) -> None:
    results = sweeps.all([sweeps.task(number) for number in range(2)], places=1)
    assert len(set(values(results, "pid"))) == 2 and values(results, "most") == [1, 1]


def test_a_pack_gets_as_many_jobs_as_it_wants(sweeps: Sweeps) -> None:
    tasks = [sweeps.task(number) for number in range(8)]
    small = sweeps.all(tasks, asks=True, make=idle_pack.make_small)
    assert max(values(small, "most")[4:]) == 2  # the first four came before it could tell
    assert max(values(sweeps.all(tasks, asks=True), "most")) == 8


def test_a_member_that_fails_ends_alone(sweeps: Sweeps) -> None:
    results = sweeps.all([sweeps.task(0), sweeps.task(1, raises_at=3), sweeps.task(2)])
    assert isinstance(failure(results[1]), ValueError)
    assert [results[number].return_value["steps"] for number in (0, 2)] == [20, 20]
    assert "ValueError: job 1 fails" in (sweeps.folder / "job-1" / "job.log").read_text()
    assert "ValueError" not in (sweeps.folder / "job-0" / "job.log").read_text()


def test_if_the_process_is_killed_only_its_jobs_fail_and_the_others_are_run(sweeps: Sweeps) -> None:
    tasks = [sweeps.task(0, dies_at=3), *(sweeps.task(number) for number in range(1, 5))]
    results = sweeps.all(tasks, places=2)
    died = [number for number in sorted(results) if failure(results[number]) is not None]
    assert died == [0, 1] and all(isinstance(failure(results[number]), JobDied) for number in died)
    assert "killed by SIGKILL" in str(failure(results[1]))
    assert [results[number].return_value["steps"] for number in (2, 3, 4)] == [20] * 3


def test_a_pack_that_hangs_is_ended(sweeps: Sweeps) -> None:
    limit = {"cluster": {"hang_timeout": 1}}
    results = sweeps.all([sweeps.task(0, hangs_at=2, **limit), sweeps.task(1, steps=1, **limit)])
    assert results[1].return_value["steps"] == 1
    assert "made no progress; where it stopped is in" in str(failure(results[0]))
    assert "idle_pack.py" in (sweeps.folder / "pack-1.log").read_text()


class Search(Batch):
    """A search that stops job 1."""

    fixed = False

    def __init__(self, jobs: Sequence[Task]) -> None:
        super().__init__(jobs)
        self.stopped: dict[int, bool] = {}

    def should_stop(self, number: int) -> bool:
        return number == 1

    def ended(self, number: int, returned: JobReturn, stopped: bool) -> None:
        super().ended(number, returned, stopped)
        self.stopped[number] = stopped


@pytest.mark.parametrize("stoppable", [True, False])
def test_a_job_of_a_search_is_stopped_alone(sweeps: Sweeps, stoppable: bool) -> None:
    search = Search([sweeps.task(number, steps=60, stoppable=stoppable) for number in range(4)])
    sweeps.run(search, places=3, poll=0.02)
    assert search.stopped == {0: False, 1: True, 2: False, 3: False}
    assert isinstance(failure(search.results[1]), JobDied)
    kept = {number: result.return_value for number, result in search.results.items() if number != 1}
    assert {value["steps"] for value in kept.values()} == {60} and len({value["pid"] for value in kept.values()}) == 1


def test_a_job_that_may_not_start_any_more_is_dropped(sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search([sweeps.task(number) for number in (0, 2, 3)])
    monkeypatch.setattr(search, "may_start", lambda number: number != 2)
    sweeps.run(search, places=1, poll=0.02)
    assert [result.return_value["steps"] for result in search.results.values()] == [20, 20]
    assert search.results.keys() == {0, 3}


def test_a_signal_to_the_sweep_reaches_every_member(sweeps: Sweeps) -> None:
    tasks = [sweeps.task(0, steps=100_000), sweeps.task(1, steps=100_000, stoppable=False)]
    log = sweeps.folder / "job-1" / "job.log"

    def stop() -> None:
        while not log.exists():
            time.sleep(0.01)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    batch = Batch(tasks)
    started = time.monotonic()
    with pytest.raises(RunStopped):
        sweeps.run(batch)
    assert time.monotonic() - started < 20 and not batch.results
