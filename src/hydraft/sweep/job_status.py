"""A run that tells its sweep's ledger how it goes, whichever launcher started it. No torch here."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from hydraft.config.choices import Mode
from hydraft.config.cli import output_folder
from hydraft.config.sweep import SweepConfig
from hydraft.errors import ConfigError, RunFailed, RunStopped
from hydraft.sweep.results import objective
from hydraft.sweep.results.ledger import ABOUT, Job, Ledger, State


class JobDied(Exception):
    """A job's process ended without a word."""


class Elsewhere(Exception):
    """Another sweep's process is at this very job."""


TOLD = (ConfigError, RunFailed, RunStopped, JobDied)
"""Errors whose message says it all."""


class Recorded:
    """``task``, which in a sweep takes the job for itself, and leaves in the ledger that it runs and how it ended."""

    def __init__(self, task: Callable[[DictConfig], float | None]) -> None:
        self.task = task

    def __call__(self, composed: DictConfig) -> float | None:
        """Run it, or return the objective of one that is done."""
        _refuse_outside(composed)
        found = _job()
        if found is None or composed.mode is not Mode.train:
            return self.task(composed)
        ledger, key = found
        with ledger.claim(key) as mine:
            if not mine:
                raise Elsewhere(key)
            job = ledger.jobs()[key]
            if job.state is State.done:  # since it was chosen
                return job.objective if not isinstance(job.objective, list) else job.objective[0]
            ledger.tell(key, State.running)
            try:
                loss = self.task(composed)
            except BaseException as error:
                state = State.interrupted if isinstance(error, KeyboardInterrupt) else State.failed
                with suppress(OSError):  # a full disk must not hide why
                    ledger.tell(key, state, error=line(error))
                raise
            compared = compared_by(list(composed.sweep.objective), output_folder(), loss)
            ledger.tell(key, State.done, objective=compared)
            return compared[0] if isinstance(compared, list) else compared


def compared_by(names: list[str], folder: Path, loss: float | None) -> float | list[float] | None:
    """What a sweep compares a finished run by: a number, or one for each of several objectives; None where it has none."""
    if names == [objective.LOSS]:
        return loss
    found = objective.values(names, json.loads((folder / "result.json").read_text(encoding="utf-8")))
    return found[0] if found is not None and len(found) == 1 else found


def _refuse_outside(composed: DictConfig) -> None:
    """Settings of a sweep have no meaning in a single run."""
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        return
    asked, default = OmegaConf.to_object(composed.sweep), SweepConfig()
    for name in (field.name for field in fields(SweepConfig)):
        if getattr(asked, name) != getattr(default, name):
            raise ConfigError(f"sweep.{name}={getattr(asked, name)}: is about a sweep: add -m, or leave it away")


def _job() -> tuple[Ledger, str] | None:
    """The ledger that this job is in, and its key there; None outside of a sweep that has one."""
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN or not (Path(str(hydra.sweep.dir)) / ABOUT).exists():
        return None
    ledger = Ledger(Path(str(hydra.sweep.dir)))
    named = [job for job in ledger.jobs().values() if job.name == output_folder().name]
    return (ledger, named[0].key) if named else None


def line(error: BaseException) -> str:
    """An error as one line, without the log's path and without how to resume, which are for the terminal."""
    text = error.summary if isinstance(error, (RunFailed, RunStopped)) else str(error)
    return " ".join((text if isinstance(error, TOLD) else f"{type(error).__name__}: {text}").split())


def describe(job: Job, folder: Path) -> str:
    """A job that did not end well, in a line, with where to look."""
    ranks = sorted((folder / job.name).glob("rank-*.log"))
    log = next((file for file in (*ranks, folder / job.name / "job.log") if file.exists()), None)
    return f"{job.name}: {job.state.value}: {job.error or 'no cause is known'}" + (f"\n  its log: {log}" if log else "")
