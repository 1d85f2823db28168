"""The folders that the board shows, and the only way from a run's id to its folder. No torch."""

from dataclasses import dataclass
from pathlib import Path

from hydraft.errors import ConfigError

USUAL = ("outputs", "multirun")
"""Where train.py puts runs and sweeps. One that is not there yet is shown as soon as it is."""


class Outside(ValueError):
    """An id of no folder below the roots."""


@dataclass(frozen=True)
class Root:
    """A folder of runs."""

    label: str
    """The first part of the ids of what is in it."""
    folder: Path
    """As an absolute path without symbolic links."""


def roots_of(named: list[str]) -> list[Root]:
    """The roots that a command names, or the usual ones.

    Raises:
        ConfigError: one is no folder, or is named twice.
    """
    found: list[Root] = []
    for name in named or USUAL:
        folder = Path(name)
        if named and not folder.is_dir():
            raise ConfigError(f"{name}: {'is a file' if folder.exists() else 'no such folder'}: name folders of runs")
        place = folder.resolve()
        if any(place == other.folder or other.folder in place.parents for other in found):
            raise ConfigError(f"{name}: is, or is in, another folder that is named: leave it out")
        label = place.name or "root"
        taken = sum(other.label.partition("~")[0] == label for other in found)
        found.append(Root(f"{label}~{taken + 1}" if taken else label, place))
    return found


def folder_of(roots: list[Root], name: str) -> Path:
    """The folder with an id, ``label/path``.

    Raises:
        Outside: it is not below a root, a part of it is a symbolic link, or it does not exist.
    """
    label, _, rest = name.partition("/")
    root = next((one for one in roots if one.label == label), None)
    parts = rest.split("/") if rest else []
    if root is None or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise Outside(name)
    folder = root.folder
    try:
        for part in parts:
            folder = folder / part
            if folder.is_symlink():
                raise Outside(name)
        if not folder.is_dir():
            raise Outside(name)
    except OSError:
        raise Outside(name) from None
    return folder


def file_in(folder: Path, name: str) -> Path | None:
    """The regular file ``name`` in a folder; None if it is missing, a symbolic link, a pipe or in another folder."""
    file = folder / name
    if "/" in name or "\0" in name or name in ("", ".", ".."):
        return None
    try:
        return file if file.is_file() and not file.is_symlink() else None
    except OSError:
        return None
