"""A disk that fills up at any write loses nothing that was written, and with room again the same write succeeds."""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_disk import PAGE, contents, fill, make_room, mounted

from conftest import config_of
from hydraft.config.schema import load_config
from hydraft.errors import ConfigError
from hydraft.infer.batch.journal import Journal
from hydraft.launch import run as launch
from hydraft.plan.plan import make_plan
from hydraft.runs import resume, run_folder
from hydraft.runs.loss_plot import read_metrics
from hydraft.sweep.results.ledger import Job, Ledger, State
from hydraft.sweep.results.outcome import Outcome
from hydraft.system import files, line_file
from hydraft.system.console import Screen
from hydraft.system.hardware import Hardware
from hydraft.tracking.base import Tracker
from hydraft.training.callbacks.logging import LoggingCallback

CONFIG = config_of("lora.r=4")
PLAN = make_plan(CONFIG, 8)
ROOMS = (0, 1, 2, 3)
"""Pages that are left on the disk: each stops a write at another place."""
LONG = "长" * (PAGE // 2)
"""Text that does not fit on one page."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with mounted(tmp_path / "disk", "256k") as folder:
        yield folder


def logging(folder: Path) -> LoggingCallback:
    """The callback that writes metrics.jsonl, on rank 0."""
    return LoggingCallback(folder, 0, Screen(os.open(os.devnull, os.O_WRONLY), True), Tracker(CONFIG, folder))


class Metrics:
    """Lines of metrics.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.callback, self.step = folder, logging(folder), 1
        self.write()

    def write(self) -> None:
        self.callback.write(self.step, {"loss": 1.5, "note": LONG})
        self.step += 1

    def check(self) -> None:
        assert [line["step"] for line in read_metrics(self.folder)] == list(range(1, self.step))


class OfASweep:
    """Events of a ledger."""

    def __init__(self, folder: Path) -> None:
        self.ledger, self.count = Ledger(folder), 2
        self.ledger.add([Job("k", "lr=1", ["lr=1"], error=LONG)])
        self.ledger.record("k", State.running)

    def write(self) -> None:
        self.ledger.record("k", State.failed, error=LONG)
        self.count += 1

    def check(self) -> None:
        assert len(line_file.read(self.ledger.file).values) == self.count


class OfABatch:
    """Buckets of a batch's journal."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "answers.jsonl"
        self.journal = Journal(self.output, "key")
        self.write()

    def write(self) -> None:
        self.journal.add(len(self.journal.done), [{"index": len(self.journal.done), "answer": LONG, "tokens": 1}])

    def check(self) -> None:
        assert self.journal.file is not None
        known = self.journal.done
        self.journal.file.close()
        self.journal = Journal(self.output, "key")
        assert self.journal.done == known


class Search:
    """Entries of Optuna's journal."""

    def __init__(self, folder: Path) -> None:
        from optuna.distributions import FloatDistribution

        from hydraft.sweep.search_space import Space
        from hydraft.sweep.study import Method, Search

        self.make = lambda: Search(folder, Space({"lr": FloatDistribution(0, 1)}, []), ["loss"], Method())
        self.search = self.make()
        self.write()

    def write(self) -> None:
        self.search.study.set_user_attr("note", LONG)

    def check(self) -> None:
        assert self.make().study.user_attrs["note"] == LONG


class Result:
    """result.json of a run, as it is written at the end."""

    def __init__(self, folder: Path) -> None:
        self.file, self.tries = folder / "result.json", 0
        files.write_json(self.file, {"objective": 1.5, "note": LONG})

    def write(self) -> None:
        self.tries += 1
        self.status = f"failed {self.tries}"
        launch._write_result(self.file.parent, 0.0, self.status)
        if json.loads(self.file.read_text()).get("status") != self.status:
            raise OSError("No space left on device")  # it printed so

    def check(self) -> None:
        assert json.loads(self.file.read_text())["objective"] == 1.5


class Folder:
    """A folder with weights, as a checkpoint or an adapter is."""

    def __init__(self, folder: Path) -> None:
        self.target = folder / "adapter"
        self.write()

    def write(self) -> None:
        with files.staged_folder(self.target) as staging:
            (staging / "weights").write_bytes(b"w" * 2 * PAGE)
            files.write_json(staging / "manifest.json", {"weights": LONG})

    def check(self) -> None:
        assert sorted(file.name for file in self.target.iterdir()) == ["manifest.json", "weights"]


class Described:
    """config.yaml, plan.json and environment.json of a run that is resumed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "run"
        run_folder.create(self.folder, CONFIG, PLAN, Hardware())

    def write(self) -> None:
        run_folder.describe(self.folder, CONFIG, PLAN, Hardware())

    def check(self) -> None:
        assert load_config(self.folder / "config.yaml") == CONFIG
        assert json.loads((self.folder / "plan.json").read_text())


WRITERS: list[Callable[[Path], Any]] = [Metrics, OfASweep, OfABatch, Search, Result, Folder, Described]


@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__.lower())
def test_a_write_that_the_disk_cuts_off_leaves_what_was_there(writer: Callable[[Path], Any], disk: Path) -> None:
    under = writer(disk)
    failed = 0
    for room in ROOMS:
        fill(disk, room)
        before = contents(disk)
        try:
            under.write()
        except (OSError, ConfigError) as error:
            failed += 1
            assert "No space left on device" in str(error)
            assert contents(disk) == before
        make_room(disk)
        under.check()
        under.write()
        under.check()
    assert failed >= 1


def test_a_folder_is_claimed_by_a_whole_config_or_not_at_all(disk: Path) -> None:
    """And the command that failed says what to do, and can be given again."""
    refused = 0
    for room in (0, 1, 2, 3, 4, 6, 20):
        folder = disk / f"run-{room}"
        fill(disk, room)
        try:
            with run_folder.held(folder):
                run_folder.create(folder, CONFIG, PLAN, Hardware())
        except ConfigError as error:
            refused += 1
            assert "No space left on device" in str(error) and "hydra.run.dir=" in str(error)
            assert not folder.exists() or list(folder.iterdir()) == []
        make_room(disk)
        if not folder.exists() or not list(folder.iterdir()):
            with run_folder.held(folder):
                run_folder.create(folder, CONFIG, PLAN, Hardware())
        assert load_config(folder / "config.yaml") == CONFIG
        assert json.loads((folder / "environment.json").read_text())
    assert 4 <= refused < 7


TORN = '{"step": 3, "loss": 2.5, "note": "长"}'.encode()


def test_a_line_that_was_cut_off_anywhere_is_dropped_and_the_run_goes_on(tmp_path: Path) -> None:
    """As an earlier version, a kill or a power cut leaves it."""
    whole = b'{"step": 1, "loss": 3.5}\n{"step": 2, "loss": 3.0}\n'
    for cut in range(len(TORN) + 1):
        file = tmp_path / "metrics.jsonl"
        file.write_bytes(whole + TORN[:cut])
        steps = [1, 2, 3] if cut == len(TORN) else [1, 2]
        assert [line["step"] for line in read_metrics(tmp_path)] == steps
        assert [line["step"] for line in Outcome(Job("k", "n"), tmp_path).metrics] == steps
        callback = logging(tmp_path)
        callback.resume(2, 2, 0, 0.0)
        callback.write(3, {"loss": 2.5})
        assert [json.loads(line)["step"] for line in file.read_bytes().splitlines()] == [1, 2, 3]
    file.write_bytes(whole + bytes(PAGE))  # what a power cut left of a block
    logging(tmp_path).resume(2, 2, 0, 0.0)
    assert file.read_bytes() == whole


def test_a_journal_that_was_cut_off_anywhere_keeps_its_whole_lines(tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    part = tmp_path / "answers.jsonl.part"
    journal = Journal(output, "key")
    for bucket in range(2):
        journal.add(bucket, [{"index": bucket, "answer": "长" * 3, "tokens": 1}])
    assert journal.file is not None
    journal.file.close()
    whole = part.read_bytes()
    ends = [position + 1 for position, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole)):
        part.write_bytes(whole[:cut])
        resumed = Journal(output, "key")
        assert list(resumed.done) == list(range(max(0, sum(cut >= end - 1 for end in ends) - 1)))
        resumed.add(7, [])
        assert resumed.file is not None
        resumed.file.close()
        assert all(json.loads(line) for line in part.read_bytes().splitlines())
        again = Journal(output, "key")
        assert 7 in again.done and again.file is not None
        again.file.close()


def _record(folder: Path, number: int) -> None:
    ledger = Ledger(folder)
    for _ in range(25):
        ledger.record(f"k{number}", State.running)


def test_two_resumes_of_a_sweep_append_after_a_torn_line(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.add([Job(f"k{number}", f"n{number}") for number in range(2)])
    with ledger.file.open("ab") as file:
        file.write(b'{"time": 1, "job": "k0", "na')
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_record, args=(tmp_path, number)) for number in range(2)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    lines = [json.loads(line) for line in ledger.file.read_bytes().splitlines()]
    assert [sum(line["job"] == f"k{number}" for line in lines) for number in range(2)] == [26, 26]


def test_a_config_that_was_cut_off_anywhere_can_be_begun_again(tmp_path: Path) -> None:
    """As an earlier version left it on a full disk; only if nothing else of a run is there."""
    run_folder.create(tmp_path / "whole", CONFIG, PLAN, Hardware())
    text = (tmp_path / "whole/config.yaml").read_bytes()
    for number, cut in enumerate([0, 1, 7, len(text) // 3, text.index(b"\nlora:") + 1, len(text) // 2, len(text) - 9]):
        folder = tmp_path / f"cut-{number}"
        folder.mkdir()
        for name, content in {"config.yaml": text[:cut], "job.log": b"of the sweep", ".config.yaml": b"mode"}.items():
            (folder / name).write_bytes(content)
        assert resume.adopted(CONFIG, folder) == CONFIG
        assert not resume.same(CONFIG, folder)
        run_folder.create(folder, CONFIG, PLAN, Hardware())
        assert (folder / "config.yaml").read_bytes() == text and (folder / "job.log").read_bytes() == b"of the sweep"
    (tmp_path / "whole/config.yaml").write_bytes(b"")
    (tmp_path / "whole/checkpoints").mkdir()
    with pytest.raises(
        ConfigError, match=r"its config.yaml is cut off, and checkpoints, .* of a run is there: put .* hydra.run"
    ):
        resume.same(CONFIG, tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"resume=.*its config.yaml is empty.*with hydra.run.dir="):
        run_folder.find(str(tmp_path / "whole"), "resume")
