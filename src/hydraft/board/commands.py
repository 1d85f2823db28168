"""The commands of runs, jobs and sweeps, for a shell and for resuming. No torch."""

import re
from pathlib import Path
from typing import Any

import yaml

from hydraft.config import printed
from hydraft.errors import ConfigError
from hydraft.sweep.results.ledger import Ledger, read_about
from hydraft.system import files, ownership, program
from hydraft.system.redaction import redact_command, redact_line

MULTIRUN = "multirun.yaml"

LARGEST = 2**20
"""Bytes of a multirun.yaml."""


def of(folder: Path, sweep: bool) -> str | None:
    """The command of a run or a sweep, without secrets; None if it was not written down."""
    if sweep:
        try:
            command = read_about(folder).get("command")
        except ConfigError:
            return None
        return redact_line(command) if isinstance(command, str) else None
    words = files.read_object(folder / "environment.json").get("command")
    if not isinstance(words, list) or not words:
        return None
    return " ".join(map(printed.shell_word, program.as_line(redact_command([str(word) for word in words]))))


def of_job(folder: Path) -> str | None:
    """The command that runs a job of a sweep alone."""
    try:
        found = next(job for job in Ledger(folder.parent).jobs().values() if job.name == folder.name)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return of(folder, sweep=False)
    return printed.command("train", *map(printed.shell_word, redact_command(found.overrides)))


def resume_sweep(folder: Path, retry_failed: bool) -> list[str]:
    """The arguments of train.py that resume a sweep: those of its own command, read from multirun.yaml.

    Raises:
        ConfigError: they are not known, or somebody else could have written them.
    """
    try:
        doubt = ownership.doubt(folder, MULTIRUN)
        if doubt is None:
            overrides = _overrides(folder / MULTIRUN)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, RecursionError):
        raise ConfigError(
            f"{folder}: {MULTIRUN}, which has the sweep's overrides, cannot be read: {_by_hand(folder)}"
        ) from None
    if doubt is not None:
        raise ConfigError(f"{folder}: {doubt}, so its {MULTIRUN} does not decide what is run: {_by_hand(folder)}")
    kept = [one for one in overrides if not re.match(r"\W*(hydra\.mode|hydra\.(run|sweep)\.dir|sweep\.(name|resume|retry_failed))=", one)]  # fmt: skip
    return ["-m", *kept, f"sweep.resume={folder}", *(["sweep.retry_failed=true"] if retry_failed else [])]


def _by_hand(folder: Path) -> str:
    return f"give its command again in a terminal, with {printed.override('sweep.resume', folder)}"


def _overrides(file: Path) -> list[str]:
    with file.open("rb") as opened:
        text = opened.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError("it is too large")
    known: Any = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["hydra"]["overrides"]
    found = [*known["task"], *known["hydra"]]
    if not all(isinstance(one, str) for one in found):
        raise ValueError("an override is no text")
    return found
