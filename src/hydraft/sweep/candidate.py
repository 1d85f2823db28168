"""A job of a sweep before it is known whether it can run. No torch."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, open_dict, read_write

from hydraft.sweep import folder_names
from hydraft.sweep.slots import Demand


@dataclass
class Candidate:
    """A job that has been composed and checked."""

    overrides: list[str]
    composed: DictConfig | None = None
    demand: Demand = field(default_factory=Demand)
    key: str = ""
    refused: str | None = None
    """Why it cannot run, in one line."""

    def in_folder(self, name: str) -> DictConfig:
        """The config that was checked, with the job's folder, so that it need not be composed again."""
        assert self.composed is not None
        with read_write(self.composed.hydra), open_dict(self.composed.hydra):
            self.composed.hydra.sweep.subdir = name
        return self.composed


def refusal(candidates: Sequence[Candidate]) -> str:
    """The message for jobs of which some cannot run."""
    refused = [one for one in candidates if one.refused]
    names = folder_names.names([one.overrides for one in candidates])
    lines = [f"  {name}: {one.refused}" for one, name in zip(candidates, names, strict=True) if one.refused]
    head = f"{Path(sys.argv[0]).name}: {len(refused)} of {len(candidates)} jobs cannot run, and none was started:"
    rest = [] if len(refused) == len(candidates) else ["sweep.skip_invalid=true runs the others"]
    return "\n".join([head, *lines, *rest])


def failure(returned: JobReturn) -> BaseException | None:
    """Why a job failed. (Hydra's own property for it prints.)"""
    return returned._return_value if returned.status is not JobStatus.COMPLETED else None
