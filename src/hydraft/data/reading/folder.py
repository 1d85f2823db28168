"""Finds the data files in a folder or those that match a pattern. No torch."""

import re
from collections.abc import Iterator
from pathlib import Path

from hydraft.data.reading import kind
from hydraft.data.reading.json_text import Say
from hydraft.errors import ConfigError

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in a file's name that say which split it belongs to, as ``datasets`` reads them."""

ABOUT = ("dataset_info", "dataset_infos", "state", "config", "metadata", "package", "readme", "license", "requirements")
"""Names of files beside the data, without suffix."""


def files_of(folder: Path, split: str, name: str, say: Say) -> list[Path]:
    """The data files in a folder, in natural order (part-2 before part-10); of several splits, those of one.

    Args:
        split: the split; empty for ``train``, or for all files if their names have no splits.

    Raises:
        ConfigError: there are none, or of several kinds, so that the same records may be there twice.
    """
    snapshot = _snapshot(folder)
    found = sorted(_data_files(snapshot), key=lambda file: natural(str(file.relative_to(snapshot))))
    if any(kind.suffix_of(file) not in kind.TEXT for file in found):
        found = [file for file in found if kind.suffix_of(file) not in kind.TEXT]  # notes beside the data
    if not found:
        raise ConfigError(f"{name}: no data files in this folder ({kind.KINDS})")
    splits: dict[str, list[Path]] = {}
    for file in found:
        splits.setdefault(_split_of(file.relative_to(snapshot)), []).append(file)
    if set(splits) != {""} or split:
        wanted = next((known for known, words in SPLITS.items() if split in words), split) or "train"
        if wanted not in splits:
            names = [known for known in splits if known]
            have = f"its splits: {', '.join(names)}" if names else "its files' names have no splits"
            raise ConfigError(f"{name}: has no split {wanted} ({have}); give {folder}{f':{names[0]}' if names else ''}")
        found = splits.pop(wanted)
        if splits:
            others = ", ".join(sorted(file.name for files in splits.values() for file in files)[:5])
            say(f"{name}: the files of the split {wanted} are read; left out: {others}")
    suffixes = {kind.suffix_of(file) for file in found}
    if len(suffixes) > 1:
        example = f"{folder}/*{sorted(suffixes)[0]}"
        raise ConfigError(
            f"{name}: has files of several kinds ({', '.join(sorted(suffixes))}); name those of one, such as {example}"
        )
    return found


def matching(pattern: str, name: str) -> list[Path]:
    """The files that match a pattern such as ``data/*.jsonl`` or ``data/**/*.json``, in natural order.

    Raises:
        ConfigError: there are none.
    """
    path = Path(pattern).expanduser()
    fixed = 0  # parts before the first with a wildcard
    while not has_wildcard(path.parts[fixed]):
        fixed += 1
    base = Path(*path.parts[:fixed])
    hidden = any(part.startswith(".") for part in path.parts[fixed:])
    found = [file for file in base.glob("/".join(path.parts[fixed:])) if file.is_file()]
    found = [file for file in found if hidden or not _is_hidden(file.relative_to(base))]  # as in a shell
    if not found:
        raise ConfigError(f"{name}: no file matches")
    return sorted(found, key=lambda file: natural(str(file)))


def has_wildcard(text: str) -> bool:
    """Whether ``text`` is a pattern."""
    return any(character in text for character in "*?[")


def natural(text: str) -> list[tuple[int, int, str]]:
    """A sorting key by which numbers in names count as numbers."""
    parts = re.split(r"(\d+)", text)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def _snapshot(folder: Path) -> Path:
    """The files of a folder of the hub's cache (``datasets--owner--name``); other folders as they are."""
    snapshots = folder / "snapshots"
    if not snapshots.is_dir():
        return folder
    known = folder / "refs/main"
    if known.is_file() and (named := snapshots / known.read_text().strip()).is_dir():
        return named
    return max(snapshots.iterdir(), key=lambda one: one.stat().st_mtime, default=folder)


def _data_files(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        hidden = _is_hidden(file.relative_to(folder))
        about = file.name.partition(".")[0].lower() in ABOUT
        if not hidden and not about and kind.suffix_of(file) in kind.SUFFIXES and file.is_file():
            yield file


def _is_hidden(file: Path) -> bool:
    return any(part.startswith((".", "__")) for part in file.parts)


def _split_of(file: Path) -> str:
    """The split in a file's path; empty if there is none."""
    words = re.split(r"[^a-z]+", str(file).lower())
    return next((split for split, known in SPLITS.items() if any(word in known for word in words)), "")
