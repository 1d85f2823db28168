"""A folder in the cache that stands for a checkpoint: made on first use, verified later, and made again if it is damaged. No torch."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from hydraft.errors import ConfigError
from hydraft.models.convert import shards
from hydraft.system import cache_entries, files
from hydraft.system.version import __version__


@dataclass(frozen=True)
class Prepared:
    """A folder in the cache, and what writes it."""

    folder: Path
    make: Callable[[Path], None]
    """Writes the folder that it is given, which does not exist yet, whole or not at all."""

    def ensure(self, console: Console) -> None:
        """Have a folder that can be used: one process makes it if it is missing or damaged, and others wait.

        Raises:
            ConfigError: it cannot be made.
        """
        if cache_entries.exists(self.folder) and fault(self.folder) is None:
            return
        say = _say(console)
        with cache_entries.locked(self.folder, say):
            cache_entries.clear(self.folder)
            self._set_aside(say)
            if not self.folder.is_dir():
                self.make(self.folder)
                cache_entries.seal(self.folder)

    def remove_if_damaged(self, console: Console) -> None:
        """Remove the folder if it is damaged, and do not make it again yet.

        Raises:
            ConfigError: that is not permitted.
        """
        if cache_entries.exists(self.folder) and fault(self.folder) is not None:
            with cache_entries.locked(self.folder):
                self._set_aside(_say(console))

    def _set_aside(self, say: cache_entries.Say) -> None:
        """Hold the lock."""
        if cache_entries.exists(self.folder) and (why := fault(self.folder)) is not None:
            cache_entries.set_aside(self.folder, why, say)


def folder_for(name: str, depends_on: list[Any]) -> Path:
    """Where in the cache an entry is: its ``name``, with a hash of everything that it depends on (as JSON) and of the version."""
    key = hashlib.sha256(json.dumps([__version__, *depends_on], sort_keys=True).encode()).hexdigest()[:16]
    return files.cache_folder("models") / f"{name}-{key}"


def fault(folder: Path) -> str | None:
    """What is wrong with the folder of a prepared model; None if it may be used."""
    return cache_entries.fault(folder, _incomplete)


def _incomplete(folder: Path) -> str | None:
    """What is missing in a folder that was made by a version without seals."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        file = folder / name
        if not file.is_file() and name != "config.json":
            continue  # not every model has it
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return f"{name} is missing"
        except ValueError:
            return f"{name} is no JSON"
        if not isinstance(found, dict):
            return f"{name} is no JSON object"
    try:
        shards.check_sizes(folder)
    except ConfigError as error:
        return str(error).removeprefix(f"{folder}").lstrip(":/ ")
    return None


def _say(console: Console) -> cache_entries.Say:
    return partial(console.print, highlight=False, markup=False, soft_wrap=True)
