"""A job of a sweep before it is known whether it can run. No torch."""

import pickle
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hydraft.config import cli, text
from hydraft.config.schema import Config
from hydraft.errors import RunFailed
from hydraft.runs import start
from hydraft.sweep import folder_names
from hydraft.sweep.results.ledger import Job, State
from hydraft.sweep.slots import Demand
from hydraft.system import program

CONFIGS = 1000
"""Jobs of a batch up to which each job's config is part of what Hydra's sweeper receives; ten thousand would take gigabytes."""


@dataclass(frozen=True)
class Packed:
    """A composed config in a tenth of its memory: a sweep holds those of all its jobs. Pickled and read back it is the config itself."""

    content: bytes
    subdir: str | None = None
    """The job's folder, as ``hydra.sweep.subdir`` of the config."""

    @classmethod
    def of(cls, config: DictConfig) -> Self:
        """Pack a config."""
        return cls(zlib.compress(pickle.dumps(config), 1))

    def __reduce__(self) -> tuple[Callable[..., DictConfig], tuple[Any, ...]]:
        return unpacked, (self.content, self.subdir)


def unpacked(content: bytes, subdir: str | None) -> DictConfig:
    """The config of a ``Packed``."""
    config: DictConfig = pickle.loads(zlib.decompress(content))
    if subdir is not None:
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.sweep.subdir = subdir
    return config


def stopping(packed: Packed, step: int | None) -> Packed:
    """The config of a job that stops after ``step``."""
    if step is None:
        return packed
    config = unpacked(packed.content, packed.subdir)
    with read_write(config), open_dict(config):
        config.sweep.stop_at = step
    return replace(Packed.of(config), subdir=packed.subdir)


@dataclass
class Candidate:
    """A job that has been composed and checked."""

    overrides: list[str]
    packed: Packed | None = None
    """Its config, once it has been composed."""
    demand: Demand = field(default_factory=Demand)
    steps: int | None = None
    """Optimizer steps of the whole run, once it has been planned."""
    key: str = ""
    start: str | None = None
    """The override with the adapter's folder, where the command names another text (``lora.start=last``)."""
    refused: str | None = None
    """Why it cannot run, in one line."""

    @property
    def composed(self) -> DictConfig | None:
        """Its config."""
        return None if self.packed is None else unpacked(self.packed.content, self.packed.subdir)

    def take(self, composed: DictConfig) -> Config:
        """Keep the composed config, and return it as the schema has it, with what an adapter that it starts from decides.

        Which adapter ``lora.start=last`` means is kept too: a later run may be newer when the job starts.

        Raises:
            ConfigError: it is not a config, or cannot start from that adapter.
        """
        self.packed = Packed.of(composed)
        own = [str(key) for key in composed if key != "hydra"]
        typed = cli.typed(OmegaConf.masked_copy(composed, own), Config)
        requested, _ = start.settled(typed, self.overrides)
        folder = requested.lora.start
        if folder is not None and folder != typed.lora.start:
            self.start = cli.quote(f"lora.start={folder}")
            with read_write(composed):
                composed.lora.start = text.escaped(folder)
            self.packed = Packed.of(composed)
        return requested

    def typed_in(self, name: str) -> list[str]:
        """Its overrides, with its folder, for a launcher that composes the config again."""
        return [*self.overrides, *([] if self.start is None else [self.start]), cli.quote(f"hydra.sweep.subdir={name}")]

    def in_folder(self, name: str) -> Packed:
        """The config that was checked, with the job's folder, so that it need not be composed again."""
        assert self.packed is not None
        return replace(self.packed, subdir=name)


def refusal(candidates: Sequence[Candidate]) -> str:
    """The message for jobs of which some cannot run."""
    refused = [one for one in candidates if one.refused]
    names = folder_names.names([one.overrides for one in candidates])
    lines = [f"  {name}: {one.refused}" for one, name in zip(candidates, names, strict=True) if one.refused]
    head = f"{program.name()}: {len(refused)} of {len(candidates)} jobs cannot run, and none was started:"
    rest = [] if len(refused) == len(candidates) else ["sweep.skip_invalid=true runs the others"]
    return "\n".join([head, *lines, *rest])


def failure(returned: JobReturn) -> BaseException | None:
    """Why a job failed. (Hydra's own property for it prints.)"""
    return returned._return_value if returned.status is not JobStatus.COMPLETED else None


def returned(one: Candidate, job: Job, folder: Path, with_config: bool) -> JobReturn:
    """What Hydra gets of a job of the sweep in ``folder``. ``with_config``: whether the composed config is in it."""
    found = JobReturn()
    found.overrides = one.overrides
    found.cfg = one.composed if with_config else None
    found.working_dir = str(folder / job.name)
    found.status = JobStatus.COMPLETED if job.state is State.done else JobStatus.FAILED
    found.return_value = job.objective if job.state is State.done else RunFailed(job.error or job.state.value)
    return found
