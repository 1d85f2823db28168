"""The ledger stays valid if its writers are killed, and names are valid on any file system."""

import multiprocessing
import os
import resource
import signal
from pathlib import Path

import pytest

from conftest import config_of
from hydraft.errors import ConfigError
from hydraft.sweep.folder_names import LONGEST, names, short
from hydraft.sweep.results import ledger
from hydraft.sweep.results.ledger import Job, Ledger, State, key_of
from hydraft.sweep.slots import Demand, slots
from hydraft.system.hardware import Gpu, Hardware


@pytest.fixture
def sweep(tmp_path: Path) -> Ledger:
    """A sweep of two jobs."""
    ledger.begin(tmp_path / "sweep", {"axes": ["lora.r"]})
    found = Ledger(tmp_path / "sweep")
    found.add([Job("a", "r=8", ["lora.r=8"]), Job("b", "r=16", ["lora.r=16"])])
    return found


def test_a_jobs_state_is_its_last_event(sweep: Ledger) -> None:
    for _ in range(2):
        sweep.record("a", State.running)
    sweep.record("a", State.done, objective=1.5)
    jobs = sweep.jobs()
    assert (jobs["a"].state, jobs["a"].objective, jobs["a"].attempt) == (State.done, 1.5, 2)
    assert (jobs["b"].state, jobs["b"].name, jobs["b"].overrides) == (State.pending, "r=16", ["lora.r=16"])


def test_a_truncated_line_is_skipped(sweep: Ledger) -> None:
    with sweep.file.open("a") as file:
        file.write('{"time": 1, "job": "a", "st')
    sweep.record("b", State.running)
    assert {key: job.state for key, job in sweep.jobs().items()} == {"a": State.pending, "b": State.running}


def test_a_full_disk_leaves_the_ledger_unchanged(sweep: Ledger) -> None:
    before = sweep.file.read_bytes()
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, limits[1]))
        with pytest.raises(OSError):
            sweep.record("a", State.running)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert sweep.file.read_bytes() == before
    sweep.record("a", State.running)
    assert sweep.jobs()["a"].state is State.running


def _write(folder: Path, key: str) -> None:
    for _ in range(50):
        Ledger(folder).record(key, State.running)


def test_concurrent_writers_lose_no_event(sweep: Ledger) -> None:
    writers = [multiprocessing.get_context("fork").Process(target=_write, args=(sweep.folder, key)) for key in "abab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert {key: job.attempt for key, job in sweep.jobs().items()} == {"a": 100, "b": 100}


def test_a_claim_ends_with_its_process(sweep: Ledger) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with Ledger(sweep.folder).claim("a") as claimed:
            os.write(write, b"1" if claimed else b"0")
            signal.pause()
    try:
        assert os.read(read, 1) == b"1"
        assert sweep.is_claimed("a") and not sweep.is_claimed("b")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not sweep.is_claimed("a")


def test_a_folder_name_is_never_used_twice(sweep: Ledger) -> None:
    same, stray = Job("c", "R=8"), Job("d", "r=32")
    (sweep.folder / "r=32").mkdir()
    assert [job.name for job in sweep.add([same, stray, Job("a", "other")])] == ["R=8~c", "r=32~d", "r=8"]


def test_a_folder_that_is_not_a_sweep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"something other than a sweep \(thesis.tex\)"):
        ledger.begin(tmp_path, {})
    (tmp_path / ledger.ABOUT).write_text('{"project": "other"}')
    with pytest.raises(ConfigError, match="was not written by hydraft"):
        ledger.begin(tmp_path, {})


def test_a_jobs_key_is_a_hash_of_its_config() -> None:
    key = key_of(config_of("lora.r=4"))
    assert key == key_of(config_of("lora.r=4", "sweep.name=x", "sweep.retry_failed=true"))
    assert key != key_of(config_of("lora.r=5"))


def test_names_have_the_settings_that_differ() -> None:
    jobs = [[f"zero={zero}", f"lora.r={r}", "train.max_steps=3", "train.learning_rate=1e-4"] for zero in ("stage2", "stage3") for r in (8, 16)]  # fmt: skip
    assert names(jobs) == ["zero=stage2,r=8", "zero=stage2,r=16", "zero=stage3,r=8", "zero=stage3,r=16"]
    assert names(jobs[:2], ["lora.r", "train.learning_rate"])[0] == "r=8,lr=1e-4"
    assert names([jobs[0], jobs[0]], ["zero"]) == ["zero=stage2"] * 2
    assert short(["lora.r", "zero.r", "train.max_steps", "data.mix_size"]) == {
        "lora.r": "lora.r", "zero.r": "zero.r", "train.max_steps": "max_steps", "data.mix_size": "mix_size"
    }  # fmt: skip


@pytest.mark.parametrize(
    "values, expected",
    [
        (["'问：{instruction}'", "b"], "template=问：{instruction}"),
        (["/home/me/a.json", "/home/me/b.json"], "template=a.json"),
        (['a<b>:"|?*c', "b"], "template=a-b-c"),
        (["..", "b"], "template=-"),
        (["长" * 200, "b"], "template=" + "长" * 34 + "~"),
        (["X", "x"], "template=X~"),
    ],
)
def test_names_are_valid_on_any_file_system(values: list[str], expected: str, tmp_path: Path) -> None:
    found = names([[f"data.template={value}"] for value in values])
    assert found[0].startswith(expected)
    assert len({name.casefold() for name in found}) == len(found)
    for name in found:
        assert len(name.encode()) <= LONGEST
        (tmp_path / name).mkdir()


def test_concurrent_jobs_share_the_machine() -> None:
    cards = Hardware(gpus=(Gpu("a card", 0, 9.0),) * 4, cpus=8, memory=64 << 30)
    assert [slot.gpus for slot in slots([Demand(2)] * 8, cards)] == [("0", "1"), ("2", "3")]
    assert [slot.gpus for slot in slots([Demand(1), Demand(4)], cards)] == [("0", "1", "2", "3")]
    assert [slot.gpus for slot in slots([Demand(4)] * 2, cards, jobs=2)] == [("0", "1", "2", "3")] * 2
    chosen = Hardware(gpus=(Gpu("a card", 0, 9.0, 3, "GPU-3"), Gpu("a card", 0, 9.0, 1, "GPU-1")), cpus=8)
    assert [slot.gpus for slot in slots([Demand(1)] * 2, chosen)] == [("3",), ("1",)]  # numbers, as DeepSpeed requires
    part = Hardware(gpus=(Gpu("a slice", 0, 9.0, 0, "MIG-1"),), cpus=8)
    assert [slot.gpus for slot in slots([Demand(1)], part)] == [("MIG-1",)]
    assert len(slots([Demand(1, memory=20 << 30)] * 8, cards)) == 2
    assert len(slots([Demand(2, alone=True)] * 8, cards)) == 1
    here = Hardware(cpus=8)
    assert [(slot.cores, slot.gpus) for slot in slots([Demand(2)] * 99, here)] == [(2, None)] * 4
    assert [slot.cores for slot in slots([Demand()] * 3, here)] == [2] * 3
    assert [slot.cores for slot in slots([Demand()] * 99, here, jobs=16)] == [1] * 16
