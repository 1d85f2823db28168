"""A run in a pack: how it starts, and how it ends, beside one in ranks."""

import json
import signal
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import config_of
from hydraft.config.schema import Config, load_config, save_config
from hydraft.errors import ConfigError, Diverged, OutOfMemory, Phase, RunFailed, RunStopped
from hydraft.launch import run
from hydraft.launch.local import packed
from hydraft.launch.local.shutdown import Stopped
from hydraft.system import files
from hydraft.system.signals import EarlyExit
from hydraft.training.pack import scheduler
from hydraft.training.pack.scheduler import Member, Scheduler

Train = Callable[[Config, Path], EarlyExit | None]


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a member whose training is a function, and returns it."""

    def one(train: Train, signalled: int = 0) -> Member:
        monkeypatch.setattr(packed, "import_large", lambda _: types.SimpleNamespace(train=train))
        config = config_of("train.auto_micro_batch=true", "train.micro_batch_size=4")
        save_config(config, tmp_path / "config.yaml")
        members = Scheduler(lambda _: None)
        member = members.add(0, lambda: run.run(config, tmp_path))
        while not member.over:
            members.turn()
            if signalled:
                member.stop(signalled, Stopped(signalled))
        return member

    return one


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def complete(config: Config, folder: Path) -> None:
    files.write_json(folder / "result.json", {"objective": 1.5})


def test_a_run_that_is_complete(launch: Any, tmp_path: Path) -> None:
    member = launch(complete)
    assert member.result == 1.5 and member.error is None and result(tmp_path)["status"] == "completed"


def fails(error: Exception) -> Train:
    def train(config: Config, folder: Path) -> None:
        raise error

    return train


CASES = [
    (ValueError("a layer is missing"), RunFailed, "failed", "ValueError: a layer is missing"),
    (Diverged("step 3: the loss is nan", 3, "a lower rate", {}), RunFailed, "diverged", "the loss is nan"),
    (ConfigError("lora.r=9: too large"), ConfigError, "failed", "lora.r=9"),
]


@pytest.mark.parametrize(("error", "raised", "status", "cause"), CASES, ids=[case[2] + case[3] for case in CASES])
def test_an_error_ends_the_run_as_in_a_rank(
    launch: Any, tmp_path: Path, error: Exception, raised: type[Exception], status: str, cause: str
) -> None:
    member = launch(fails(error))
    assert isinstance(member.error, raised) and cause in str(member.error)
    assert result(tmp_path)["status"] == status and result(tmp_path)["error"]["log"] == "job.log"
    assert cause in result(tmp_path)["error"]["cause"] and result(tmp_path)["error"]["rank"] == 0


def test_a_micro_batch_that_does_not_fit_is_halved(launch: Any, tmp_path: Path) -> None:
    sizes = []

    def train(config: Config, folder: Path) -> None:
        sizes.append(config.train.micro_batch_size)
        if config.train.micro_batch_size > 1:
            raise OutOfMemory("out of memory", Phase.forward)
        complete(config, folder)

    for name, text in (("plan.json", '{"tokens": null, "records": 24}'), ("environment.json", '{"hardware": null}')):
        (tmp_path / name).write_text(text)
    assert launch(train).error is None and sizes == [4, 2, 1]
    assert load_config(tmp_path / "config.yaml").train.gradient_accumulation_steps == 4


def waits(config: Config, folder: Path) -> EarlyExit | None:
    member = scheduler.current()
    assert member is not None
    while not member.signal:
        member.pause()
    return EarlyExit(7, member.signal)


def saves(config: Config, folder: Path) -> EarlyExit | None:
    member = scheduler.current()
    assert member is not None
    member.stoppable = True
    return waits(config, folder)


@pytest.mark.parametrize(("train", "status"), [(saves, "preempted"), (waits, "interrupted")])
def test_a_signal_ends_the_run_as_in_a_rank(launch: Any, tmp_path: Path, train: Train, status: str) -> None:
    member = launch(train, signal.SIGTERM)
    assert isinstance(member.error, RunStopped) and member.error.signal == signal.SIGTERM
    assert result(tmp_path)["status"] == status and result(tmp_path)["signal"] == "SIGTERM"
    assert result(tmp_path).get("step") == (7 if status == "preempted" else None)
