"""Finds what a source names: files, a folder, a pattern, a list of those, or a data set on the hub. No torch at module level."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydraft.data.reading import folder, hub, kind
from hydraft.data.reading.json_text import Say
from hydraft.data.reading.row import Row
from hydraft.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """One file or one data set of a source; its records have one format."""

    label: str
    """The setting and, if there are several, the file, for messages."""
    read: Callable[[Say], Iterator[Row]]
    files: tuple[Path, ...]
    """What its content depends on; empty for a data set on the hub."""


class Source:
    """The records of a source as they are, read from the beginning each time."""

    def __init__(self, source: str, setting: str) -> None:
        """``setting``: the setting that holds ``source``, for messages (``data.train``).

        Raises:
            ConfigError: there is no such file or folder, or no data in it.
        """
        self.source = source
        self.name = f"{setting}={source}"
        self._notes: dict[str, None] = {}
        self.parts = self._found(source)

    @property
    def notes(self) -> list[str]:
        """What was understood that a reader may not expect, as far as the source has been read."""
        return list(self._notes)

    def rows(self) -> Iterator[tuple[Part, Row]]:
        """Every row with its part.

        Raises:
            ConfigError: a part cannot be read.
        """
        for part in self.parts:
            for row in part.read(self._say):
                yield part, row

    def fingerprint(self) -> str:
        """A hash of the contents; of a data set on the hub, its name."""
        digest = hashlib.sha256()
        for part in self.parts:
            for file in part.files:
                with file.open("rb") as opened:
                    digest.update(hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest() if any(part.files for part in self.parts) else self.source

    def _say(self, note: str) -> None:
        self._notes.setdefault(note)

    def _found(self, source: str) -> list[Part]:
        if not Path(source).expanduser().exists() and (listed := re.fullmatch(r"\[(.*)\]", source.strip(), re.DOTALL)):
            entries = [entry.strip().strip("'\"") for entry in listed[1].split(",")]
            found = [part for entry in entries if entry for part in self._entry(entry)]
            if not found:
                raise ConfigError(f"{self.name}: an empty list; name at least one source")
        else:
            found = self._entry(source)
        if len({part.files for part in found}) < len([part for part in found if part.files]):
            raise ConfigError(f"{self.name}: names a file twice; to use records more often, see data.mix")
        return found

    def _entry(self, source: str) -> list[Part]:
        path = Path(source).expanduser()
        if path.is_dir():
            return self._folder(path, "")
        if not path.exists():
            before, _, split = source.rpartition(":")
            if before and Path(before).expanduser().is_dir():
                return self._folder(Path(before).expanduser(), split)
            if "://" in source:
                raise ConfigError(f"{self.name}: an address; download the file and name it")
            if folder.has_wildcard(hub.parsed(source)[0]):
                return self._files(folder.matching(source, self.name))
            if not is_file(source):
                return [Part(self.name, hub.DataSet(source, self.name), ())]
            raise ConfigError(f"{self.name}: {_missing(source)}")
        return self._files([path])

    def _folder(self, path: Path, split: str) -> list[Part]:
        if (path / "dataset_dict.json").exists() or (
            (path / "state.json").exists() and (path / "dataset_info.json").exists()
        ):
            files = tuple(sorted(file for file in path.rglob("*") if file.is_file()))
            return [Part(self.name, hub.SavedDataSet(path, split, self.name), files)]
        return self._files(folder.files_of(path, split, self.name, self._say), path)

    def _files(self, files: list[Path], base: Path | None = None) -> list[Part]:
        if len(files) > 1:
            self._say(f"{self.name}: {len(files)} files, from {files[0].name} to {files[-1].name}")
        parts = []
        for file in files:
            whole = str(file) == str(Path(self.source).expanduser())
            shown = file.relative_to(base) if base is not None and file.is_relative_to(base) else file
            label = self.name if whole else f"{self.name}, {shown}"
            parts.append(Part(label, partial(kind.rows, file, label), (file,)))
        return parts


def is_file(source: str) -> bool:
    """Whether ``source`` names a file or a folder, not a data set on the hub; whether it exists or not."""
    path = Path(source).expanduser()
    return (
        path.exists()
        or kind.suffix_of(path) in kind.SUFFIXES
        or path.suffix.lower() in kind.PACKED
        or source.startswith((".", "/", "~"))
        or "\\" in source
        or source.count("/") > 1
        or (len(path.parts) > 1 and path.parent.is_dir())
    )


def _missing(source: str) -> str:
    """Why there is no such file."""
    path = Path(source).expanduser()
    if path.parent.is_dir():
        return "no such file"
    return f"no such file (there is no folder {path.parent})"


def read_objects(source: str, name: str) -> list[Any]:
    """The objects in a source, unchecked; ``name`` is the setting with its value, for messages.

    Raises:
        ConfigError: it cannot be read, or an object in it.
    """
    found = []
    for number, (part, row) in enumerate(Source(source, name.partition("=")[0]).rows(), 1):
        if row.fault:
            raise ConfigError(f"{place(part, row, number)}: {row.fault}")
        found.append(row.value)
    return found


def place(part: Part, row: Row, number: int) -> str:
    """Where a row is, for messages; ``number``: of the record, from 1."""
    return f"{part.label}, line {row.line}" if row.fault and row.line else f"{part.label}, record {number}"
