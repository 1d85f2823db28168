"""Atomic writing of files and folders, the cache folder, and versions of installed packages. No torch."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydraft.errors import ConfigError


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically: to a temporary file beside it, flushed to disk, then renamed."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; non-ASCII characters are kept."""
    write_text(path, json.dumps(finite(value), ensure_ascii=False, indent=2, default=str) + "\n")


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
def staged_folder(target: Path) -> Iterator[Path]:
    """Write a folder atomically: the block fills a temporary folder, which then replaces ``target``, flushed to disk.

    If the block raises (for example because the disk is full), ``target`` is unchanged.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield staging
        staging.chmod(0o755)
        for file in staging.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors creates files that only their owner can read
            sync_folder(file)  # fsync works on files too
        sync_folder(staging)
        if target.exists():
            old = staging.with_name(f"{staging.name}.old")
            target.rename(old)
            staging.rename(target)
            shutil.rmtree(old)
        else:
            staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    sync_folder(target.parent)


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
