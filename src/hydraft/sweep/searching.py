"""A search at work: it asks for jobs, has a launcher run them, hears how they get on, and says which is to stop. No torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from optuna.trial import Trial

from hydraft import rundir
from hydraft.config import ConfigError
from hydraft.sweep import objective
from hydraft.sweep.search import Method, Search
from hydraft.sweep.space import make_space


class Source(Protocol):
    """Where a launcher that streams gets its jobs from; each has a number, and a folder once it runs."""

    def next(self) -> tuple[int, list[str]] | None:
        """A job's number and overrides; None when there are no more."""

    def look(self, number: int, folder: Path) -> bool:
        """Asked now and then while a job runs: whether it is to stop."""

    def ended(self, number: int, folder: Path, status: str | None) -> None:
        """A job has ended; ``status`` as in its result.json, None if it has none."""


@dataclass
class Jobs:
    """A search as a launcher sees it."""

    search: Search
    running: dict[int, Trial] = field(default_factory=dict)
    read: dict[int, int] = field(default_factory=dict)
    """Bytes of metrics.jsonl that were read, by job."""

    def next(self) -> tuple[int, list[str]] | None:
        """The next trial."""
        trial = self.search.ask()
        if trial is None:
            return None
        self.running[trial.number] = trial
        return trial.number, self.search.overrides(trial)

    def look(self, number: int, folder: Path) -> bool:
        """Tell the search of every new evaluation in mid-training."""
        if len(self.search.objectives) > 1:
            return False
        name, stop = f"eval_{self.search.objectives[0]}", False
        for line in self._lines(number, folder / "metrics.jsonl"):
            if line.get("step") and isinstance(line.get(name), (int, float)):
                stop |= self.search.evaluated(self.running[number], int(line["step"]), float(line[name]))
        return stop

    def ended(self, number: int, folder: Path, status: str | None) -> None:
        """Tell the search what came of it."""
        trial, values = self.running.pop(number), None
        if status == "completed":
            values = objective.values(self.search.objectives, rundir.result(folder))
        self.search.ended(trial, values, status == "pruned")

    def _lines(self, number: int, file: Path) -> list[dict[str, Any]]:
        try:
            with file.open("rb") as stream:
                stream.seek(self.read.get(number, 0))
                new = stream.read()
        except FileNotFoundError:
            return []
        whole = new[: new.rfind(b"\n") + 1]
        self.read[number] = self.read.get(number, 0) + len(whole)
        return [json.loads(line) for line in whole.splitlines()]


def run(
    launcher: Launcher, context: HydraContext, config: DictConfig, settings: dict[str, Any], arguments: list[str]
) -> Search:
    """Search the space that ``settings`` and ``arguments`` span with jobs of ``launcher``.

    Raises:
        ConfigError: there is no such search.
    """
    space_of = [f"{key}={value}" for key, value in (settings.pop("params") or {}).items()]
    overrides = OverridesParser.create(config_loader=context.config_loader).parse_overrides([*space_of, *arguments])
    plain = [override.input_line or "" for override in overrides if not override.is_sweep_override()]
    composed = context.config_loader.load_sweep_config(config, plain)
    if settings["pruner"] != "none" and OmegaConf.select(composed, "train.eval_every") is None:
        raise ConfigError(
            f"hydra.sweeper.pruner={settings['pruner']}: no job is evaluated in mid-training: add train.eval_every=epoch, or steps"
        )
    folder = Path(config.hydra.sweep.dir)
    seed = OmegaConf.select(composed, "seed", default=42)
    search = Search(
        folder, make_space(overrides, composed), list(composed.sweep.objective), Method(seed=seed, **settings)
    )
    OmegaConf.save(config, folder / "multirun.yaml")
    jobs = Jobs(search)
    if hasattr(launcher, "stream"):
        launcher.stream(jobs)
    else:
        _one_by_one(launcher, jobs)
    return search


def _one_by_one(launcher: Launcher, jobs: Jobs) -> None:
    """With a launcher that takes whole batches: each job is one, so that the next can learn from it."""
    while (job := jobs.next()) is not None:
        number, overrides = job
        results: Sequence[JobReturn] = launcher.launch([overrides], initial_job_idx=number)
        ended = results[0]
        folder = Path(ended.working_dir or "")
        jobs.ended(number, folder, "completed" if ended.status is JobStatus.COMPLETED else "failed")
