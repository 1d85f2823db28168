"""Records the state of a run in the ledger of its sweep, with any launcher. No torch."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from hydraft.config import text
from hydraft.config.choices import Mode
from hydraft.config.cli import output_folder
from hydraft.config.sweep import SweepConfig
from hydraft.errors import ConfigError, RunFailed, RunStopped
from hydraft.sweep.results import objective
from hydraft.sweep.results.ledger import ABOUT, Job, Ledger, State
from hydraft.system.redaction import redact_text


class JobDied(Exception):
    """A job's process ended without a result."""


class RunningElsewhere(Exception):
    """Another process runs this job."""


EXPECTED = (ConfigError, RunFailed, RunStopped, JobDied)
"""Errors whose message is enough, without their type."""


class Recorded:
    """Wraps ``task``: in a sweep it claims the job and records in the ledger that it runs and how it ended."""

    def __init__(self, task: Callable[[DictConfig], float | None]) -> None:
        self.task = task

    def __call__(self, composed: DictConfig) -> float | None:
        """Run the job, or return the objective of one that is done."""
        _refuse_outside(composed)
        found = _job()
        if found is None or composed.mode is not Mode.train:
            return self.task(composed)
        ledger, key = found
        with ledger.claim(key) as mine:
            if not mine:
                raise RunningElsewhere(key)
            job = ledger.job(key)
            if job.state is State.done:  # in the meantime
                return job.objective if not isinstance(job.objective, list) else job.objective[0]
            ledger.record(key, State.running)
            try:
                loss = self.task(composed)
            except BaseException as error:
                state, why = (
                    State.interrupted if isinstance(error, KeyboardInterrupt) else State.failed,
                    one_line(error),
                )
                rung = composed.sweep.stop_at
                if rung is not None and isinstance(error, RunStopped) and error.step == rung:
                    state, why = State.pending, f"saved at step {rung:,}, to be compared"
                with suppress(OSError):  # a full disk must not hide why
                    ledger.record(key, state, error=why)
                raise
            compared = compared_by(list(composed.sweep.objective), output_folder(), loss)
            ledger.record(key, State.done, objective=compared)
            return compared[0] if isinstance(compared, list) else compared


def compared_by(names: list[str], folder: Path, loss: float | None) -> float | list[float] | None:
    """The objective of a finished run, or a list for several objectives; None without one."""
    if names == [objective.LOSS]:
        return loss
    found = objective.values(names, json.loads((folder / "result.json").read_text(encoding="utf-8")))
    return found[0] if found is not None and len(found) == 1 else found


def _refuse_outside(composed: DictConfig) -> None:
    """Refuse settings of a sweep in a single run."""
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        return
    requested, default = (
        text.to_object(SweepConfig, OmegaConf.to_container(composed.sweep, resolve=True)),
        SweepConfig(),
    )
    for name in (field.name for field in fields(SweepConfig)):
        if getattr(requested, name) != getattr(default, name):
            raise ConfigError(f"sweep.{name}={getattr(requested, name)}: is for a sweep: add -m, or leave it out")


def _job() -> tuple[Ledger, str] | None:
    """The ledger of this job and its key there; None outside a sweep with a ledger."""
    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN or not (Path(str(hydra.sweep.dir)) / ABOUT).exists():
        return None
    ledger = Ledger(Path(str(hydra.sweep.dir)))
    named = [job for job in ledger.jobs().values() if job.name == output_folder().name]
    return (ledger, named[0].key) if named else None


def one_line(error: BaseException) -> str:
    """An error as one line, without the log's path and without how to resume, which are for the terminal."""
    text = error.summary if isinstance(error, (RunFailed, RunStopped)) else str(error)
    return redact_text(" ".join((text if isinstance(error, EXPECTED) else f"{type(error).__name__}: {text}").split()))


def describe(job: Job, folder: Path) -> str:
    """One line about a job that failed, and its log."""
    ranks = sorted((folder / job.name).glob("rank-*.log"))
    log = next((file for file in (*ranks, folder / job.name / "job.log") if file.exists()), None)
    return f"{job.name}: {job.state.value}: {job.error or 'unknown cause'}" + (f"\n  its log: {log}" if log else "")
