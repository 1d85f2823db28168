"""Atomic writing of files and folders, the cache folder, and versions of installed packages. No torch."""

import errno
import functools
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydraft.errors import ConfigError

STAGING = "staging-"
"""In the names of temporary folders: ``.adapter.staging-1a2b3c4d``."""


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Write ``text`` to ``path`` as ``write_bytes`` does.

    Args:
        path: of the file.
        text: its content.
        errors: what becomes of characters that UTF-8 does not have, as in ``str.encode``.
    """
    write_bytes(path, text.encode("utf-8", errors))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: to a temporary file beside it, flushed to disk, then renamed.

    Its permissions are those that the umask allows.

    Raises:
        OSError: it could not be written, and names ``path``; what was there is unchanged.
    """
    name = _beside(path)
    with named(path):
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            name.replace(path)
        except BaseException:
            name.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def _beside(path: Path, mark: str = "") -> Path:
    """An unused name beside ``path``."""
    return path.with_name(f".{path.name}.{mark}{secrets.token_hex(4)}")


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Name ``path`` in errors of the system that name no file, or a temporary one beside it."""
    try:
        yield
    except OSError as error:
        if error.filename is None or Path(str(error.filename)).name.startswith(f".{path.name}."):
            error.filename = str(path)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; non-ASCII characters are kept."""
    write_text(path, json.dumps(finite(value), ensure_ascii=False, indent=2, default=str) + "\n", "backslashreplace")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none, or the file is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def finite(value: Any) -> Any:
    """``value`` with None in place of NaN and infinities, inside dicts and lists too: JSON does not have them."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def staged_folder(target: Path, own: Callable[[Path], Collection[str]] | None = None) -> Iterator[Path]:
    """Write a folder atomically: the block fills a temporary folder, which then replaces ``target``, flushed to disk.

    If the block raises (for example because the disk is full), ``target`` is unchanged. Permissions are those that the umask
    allows.

    Args:
        target: the folder.
        own: of the folder that is replaced, the names that may be removed; others are moved to the new folder. None: all.
    """
    target = target.resolve() if target.is_symlink() else target
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = _beside(target, STAGING)
    with named(target):
        staging.mkdir()
        try:
            yield staging
            allowed = stat.S_IMODE(staging.stat().st_mode)
            for file in staging.rglob("*"):
                if not file.is_symlink():
                    file.chmod(allowed if file.is_dir() else allowed & 0o666)  # safetensors' own are their owner's only
                    sync_folder(file)  # fsync works on files too
            sync_folder(staging)
            if target.exists():
                _replace(target, staging, own)
            else:
                staging.rename(target)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        sync_folder(target.parent)


def _replace(target: Path, staging: Path, own: Callable[[Path], Collection[str]] | None) -> None:
    old = staging.with_name(f"{staging.name}.old")
    target.rename(old)
    try:
        staging.rename(target)
    except BaseException:
        old.rename(target)
        raise
    removed = None if own is None else own(old)
    for entry in sorted(old.iterdir()):
        if removed is not None and entry.name not in removed and not (target / entry.name).exists():
            entry.rename(target / entry.name)
    gone = old.with_suffix(".gone")  # from here on nothing in it is missed
    old.rename(gone)
    shutil.rmtree(gone)


def clear_staging(target: Path) -> None:
    """Remove temporary folders of ``target`` that a killed process left; ``target`` itself comes back if it was being replaced."""
    known = re.compile(re.escape(f".{target.name}.{STAGING}") + r"[0-9a-f]{8}(\.old|\.gone)?")
    found = (
        [entry for entry in target.parent.iterdir() if known.fullmatch(entry.name)] if target.parent.is_dir() else []
    )
    for entry in sorted(found):
        if entry.suffix != ".old":
            shutil.rmtree(entry, ignore_errors=True)
        elif not target.exists():
            entry.rename(target)


FULL = {errno.ENOSPC: "No space left on device", errno.EDQUOT: "Disk quota exceeded"}
"""Errors of a disk without room, with their texts, which libraries that are not written in Python use too."""


def is_full(error: OSError) -> bool:
    """Whether the cause is a disk without room."""
    return error.errno in FULL


def missing(folder: Path) -> list[Path]:
    """``folder`` and those above it that do not exist, the lowest first."""
    return [each for each in (folder, *folder.parents) if not os.path.lexists(each)]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders, the lowest first, up to one that is not empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def cache_folder(kind: str) -> Path:
    """The folder for files of this ``kind`` that can be recreated, in ``$HYDRAFT_CACHE`` or the user's cache folder.

    Raises:
        ConfigError: no variable says where it is.
    """
    return _cache() / kind


def _cache() -> Path:
    if base := os.environ.get("HYDRAFT_CACHE"):
        return Path(base)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "hydraft"
    try:
        return Path.home() / ".cache" / "hydraft"
    except RuntimeError:
        raise ConfigError("HOME is not set, and this user has no home folder: set HYDRAFT_CACHE to a folder") from None


def check_cache() -> None:
    """Make the cache's folder, and refuse one that cannot be written.

    Raises:
        ConfigError: names the variable that chooses it.
    """
    folder = _cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(unwritable_cache(error)) from None


def unwritable_cache(error: OSError) -> str:
    """A line about an error while writing to the cache, with the variable that chooses it."""
    name = next((name for name in ("HYDRAFT_CACHE", "XDG_CACHE_HOME") if os.environ.get(name)), "HOME")
    own = "" if name == "HYDRAFT_CACHE" else ", or set HYDRAFT_CACHE"
    value = os.environ.get(name, "")
    return (
        f"{name}={value}: encoded records and prepared models cannot be kept there "
        f"({error.filename or _cache()}: {error.strerror}): name a folder that can be written{own}"
    )


@functools.cache
def version_of(name: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def is_there(typed: str) -> bool:
    """Whether ``typed``, which may be any text, is the path of a file or folder."""
    try:
        return Path(typed).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, or ~ of an unknown user
        return False
