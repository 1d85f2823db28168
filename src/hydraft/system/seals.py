"""Seals of folders: the size and the hash of every file in one, by which damage is noticed later. No torch."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import xxhash

SHA256, XXH3 = "sha256", "xxh3_128"
"""Names of hashes: of what has to be trusted for years, and of what can be made again (ten times as fast)."""

HASHES: dict[str, Callable[[], Any]] = {SHA256: hashlib.sha256, XXH3: xxhash.xxh3_128}

CHUNK = 1 << 22
"""Bytes that are read at a time."""

Seal = dict[str, dict[str, Any]]
"""By file: its size (``bytes``) and its hash, under the hash's name."""


def of(folder: Path, name: str, known: Mapping[str, str] | None = None) -> Seal:
    """The seal of a folder. ``name``: of the hash; ``known``: the hashes of files that need not be read for it."""
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return {
        path: {"bytes": file.stat().st_size, name: (known or {}).get(path) or digest(file, name)}
        for path, file in files.items()
    }


def read(file: Path) -> Seal | None:
    """The seal in a file; None if there is none, or it is damaged."""
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return listed if isinstance(listed, dict) and listed and all(map(_is_entry, listed.values())) else None


def _is_entry(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("bytes"), int) and any(name in value for name in HASHES)


def fault(folder: Path, seal: Seal, unread: Collection[str] = ()) -> str | None:
    """What is wrong with a folder; None if every file is as it was sealed. Of the files ``unread`` only the size is compared."""
    sizes = {}
    for path in seal:
        try:
            file = folder / path
            if not file.is_file():
                return f"{path} is missing"
            sizes[path] = file.stat().st_size
        except (OSError, ValueError) as error:
            return f"{path} cannot be read ({getattr(error, 'strerror', None) or error})"
    for path, entry in seal.items():
        if sizes[path] != entry["bytes"]:
            return f"{path} was changed after it was written ({sizes[path]:,} of {entry['bytes']:,} bytes)"
    for path, entry in seal.items():
        if path in unread:
            continue
        name = next(name for name in HASHES if name in entry)
        try:
            if digest(folder / path, name) != entry[name]:
                return f"{path} was changed after it was written"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
    return None


def digest(file: Path, name: str) -> str:
    """The hash ``name`` of a file."""
    found, buffer = HASHES[name](), memoryview(bytearray(CHUNK))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(buffer):
            found.update(buffer[:size])
    return str(found.hexdigest())
