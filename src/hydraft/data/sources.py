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
from hydraft.data.reading.row import Row, broken_text
from hydraft.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """One file or one data set of a source; its records have one format."""

    label: str
    """The setting and, if there are several, the file, for messages."""
    read: Callable[[Say], Iterator[Row]]
    files: tuple[Path, ...]
    """What its content depends on, and ``key``."""
    key: str
    """The suffix of a table or of plain text, the split of a folder, or the name of a data set on the hub."""

    def fingerprint(self) -> str:
        """A hash of ``files`` and ``key``.

        Raises:
            ConfigError: a file is gone, or cannot be read.
        """
        if not self.files:
            return self.key
        hashes = []
        for file in self.files:
            try:
                with file.open("rb") as opened:
                    hashes.append(hashlib.file_digest(opened, "sha256").hexdigest())
            except OSError as error:
                raise ConfigError(f"{self.label}: {file} cannot be read ({error.strerror})") from None
        if len(hashes) == 1 and not self.key:
            return hashes[0]
        return hashlib.sha256("\n".join([self.key, *hashes]).encode()).hexdigest()


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
        """A hash of what the records depend on: the content of files; of a data set on the hub, its name."""
        prints = [part.fingerprint() for part in self.parts]
        return prints[0] if len(prints) == 1 else hashlib.sha256("\n".join(prints).encode()).hexdigest()

    def _say(self, note: str) -> None:
        self._notes.setdefault(note)

    def _found(self, source: str) -> list[Part]:
        if not source.strip():
            raise ConfigError(f"{self.name}: is empty; name a file, a folder or a data set on the hub")
        listed = re.fullmatch(r"\[(.*)\]", source.strip(), re.DOTALL)
        if listed is None or _exists(source):
            found = self._entry(source, self.name)
        else:
            entries = [entry.strip().strip("'\"") for entry in listed[1].split(",")]
            found = [part for entry in entries if entry for part in self._entry(entry, f"{self.name}, {entry}")]
            if not found:
                raise ConfigError(f"{self.name}: an empty list; name at least one source")
        files = [file.resolve() for part in found for file in part.files]
        if len(set(files)) < len(files):
            raise ConfigError(f"{self.name}: names a file twice; to use records more often, see data.mix")
        return found

    def _entry(self, source: str, label: str) -> list[Part]:
        """What one name stands for; ``label``: the setting, with this name if there are several."""
        path = Path(source).expanduser()
        if _exists(source):
            return self._folder(path, "", label) if path.is_dir() else self._files([path], label)
        before, _, split = source.rpartition(":")
        if before and _exists(before) and Path(before).expanduser().is_dir():
            return self._folder(Path(before).expanduser(), split, label)
        if "://" in source:
            raise ConfigError(f"{label}: an address; download the file, and name it here")
        if folder.has_wildcard(hub.parsed(source)[0]):
            return self._files(folder.matching(source, label), label)
        if not is_file(source):
            return [Part(label, hub.DataSet(source, label), (), source)]
        missing = "" if path.parent.is_dir() else f" (there is no folder {path.parent})"
        raise ConfigError(f"{label}: no such file{missing}")

    def _folder(self, path: Path, split: str, label: str) -> list[Part]:
        about = {name for name in ("dataset_dict.json", "state.json", "dataset_info.json") if (path / name).exists()}
        if "dataset_dict.json" in about or len(about) == 2:
            files = tuple(sorted(file for file in path.rglob("*") if file.is_file()))
            return [Part(label, hub.SavedDataSet(path, split, label), files, split)]
        return self._files(folder.files_of(path, split, label, self._say), label, path)

    def _files(self, files: list[Path], label: str, base: Path | None = None) -> list[Part]:
        if len(files) > 1:
            self._say(f"{label}: {len(files)} files, from {files[0].name} to {files[-1].name}")
        parts = []
        for file in files:
            shown = file.relative_to(base) if base is not None and file.is_relative_to(base) else file
            own = label if len(files) == 1 and base is None else f"{label}, {shown}"
            suffix = kind.suffix_of(file)
            key = suffix if suffix in (*kind.TABLE, *kind.TEXT) else ""  # of others, the content shows the kind
            parts.append(Part(own, partial(kind.rows, file, own), (file,), key))
        return parts


def _exists(source: str) -> bool:
    try:
        return Path(source).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # longer than a name may be, a null in it, or ~ of nobody
        return False


def is_file(source: str) -> bool:
    """Whether ``source`` names a file or a folder, not a data set on the hub; whether it exists or not."""
    name = hub.parsed(source)[0]
    path = Path(name)
    return (
        _exists(source)
        or kind.suffix_of(path) in (*kind.SUFFIXES, *kind.NOT_READ)
        or path.suffix.lower() in kind.PACKED
        or name.startswith((".", "/", "~"))
        or "\\" in source
        or name.count("/") > 1
        or (len(path.parts) == 1 and "." in name)
        or (len(path.parts) > 1 and path.parent.is_dir())
    )


def read_objects(source: str, name: str) -> list[Any]:
    """The objects in a source, unchecked; ``name`` is the setting with its value, for messages.

    Raises:
        ConfigError: it cannot be read, or an object in it.
    """
    found = []
    for number, (part, row) in enumerate(Source(source, name.partition("=")[0]).rows(), 1):
        fault = row.fault or (broken_text(row.value) if row.broken else None)
        if fault:
            raise ConfigError(f"{place(part, row, number)}: {fault}")
        found.append(row.value)
    return found


def place(part: Part, row: Row, number: int) -> str:
    """Where a row is, for messages; ``number``: of the record, from 1."""
    return f"{part.label}, line {row.line}" if row.fault and row.line else f"{part.label}, record {number}"
