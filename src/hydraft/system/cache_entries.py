"""Entries of the cache: folders that can be made again, and are if they are damaged. No torch.

An entry is ``<cache>/<kind>/<name>``. Its seal is ``<cache>/seals/<kind>/<name>.json``: size, hash, modification time and inode of each
file. An entry is verified before it is used: the sizes always, and the hashes of files whose time or inode differs from the seal's. Of
the other files, ``BOUND`` bytes are read, chosen anew each time if there are more: so opening an entry takes about a second at most,
and one byte that a disk has changed is noticed at once in a small entry, and sooner or later in a large one.
"""

import contextlib
import os
import random
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hydraft.errors import ConfigError
from hydraft.system import files, seals

BOUND = 4 << 30
"""Bytes that are read of files whose time and inode are those of the seal."""

Say = Callable[[str], None]
"""Is told a line for the user."""

Incomplete = Callable[[Path], str | None]
"""What is missing in an entry that has no seal, since an earlier version made it; None if it may be used. It may raise OSError and
ValueError."""


def exists(entry: Path) -> bool:
    """Whether there is anything under the name of an entry, if only a link to nothing."""
    return os.path.lexists(entry)


def fault(entry: Path, incomplete: Incomplete) -> str | None:
    """What is wrong with an entry that exists; None if it may be used. One without a seal is sealed then."""
    try:
        if not entry.is_dir():
            return (
                "a link to nothing" if entry.is_symlink() and not entry.exists() else "a file, where a folder belongs"
            )
        listed = seals.read(_seal_of(entry))
        if listed is None:
            wrong = incomplete(entry)
            if wrong is None:
                seal(entry)
            return wrong
        changed = {path for path, known in listed.items() if not _is_untouched(entry / path, known)}
        wrong = seals.fault(entry, listed, _unread(listed, changed))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
        name = getattr(error, "filename", None)
        return f"{Path(str(name)).name if name else 'it'} cannot be read ({reason})"
    if wrong is None and changed:  # copied, say: so that the hashes are not computed each time
        _write(entry, {path: {**known, **_stats(entry / path)} for path, known in listed.items()})
    return wrong


def seal(entry: Path) -> None:
    """Seal an entry as it is now; on a disk that takes no more, the next use does."""
    with contextlib.suppress(OSError):
        found = seals.of(entry, seals.XXH3)
        _write(entry, {path: {**known, **_stats(entry / path)} for path, known in found.items()})


@contextmanager
def locked(entry: Path, say: Say | None = None) -> Iterator[None]:
    """Keep other processes from making this entry. ``say`` is told if another one does, and this one waits.

    Raises:
        ConfigError: the cache cannot be written; the message names the variable that chooses it.
    """
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{entry}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if say is not None:
                say(f"waiting for another run to make {entry}")
            lock.acquire()
    except OSError as error:
        raise ConfigError(files.unwritable_cache(error)) from None
    try:
        yield
    finally:
        lock.release()


def set_aside(entry: Path, why: str, say: Say) -> None:
    """Give a damaged entry another name, and remove it; what has its files open can go on reading. Hold its lock.

    Raises:
        ConfigError: that is not permitted.
    """
    try:
        gone = entry.with_name(f".{entry.name}.damaged-{secrets.token_hex(4)}")
        entry.rename(gone)
        _seal_of(entry).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{entry}: {why}, and cannot be made again ({error.strerror}): remove it, or set HYDRAFT_CACHE to another folder"
        ) from None
    say(f"{entry}: {why}: it is made again")
    remove(gone)


def clear(entry: Path) -> None:
    """Remove what processes that were killed left of this entry, and a seal without an entry. Hold its lock."""
    if not exists(entry):
        _seal_of(entry).unlink(missing_ok=True)
    left = re.compile(re.escape(f".{entry.name}.") + r"(damaged-)?\w{8}(\.old)?")  # see staged_folder, and set_aside
    for path in entry.parent.iterdir():
        if left.fullmatch(path.name):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder as far as possible, parts that their owner may not read included."""
    with contextlib.suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        path.chmod(0o700)
        for folder, names, _ in os.walk(path):
            for inner in (Path(folder, name) for name in names):
                if not inner.is_symlink():
                    inner.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def _seal_of(entry: Path) -> Path:
    return entry.parent.parent / "seals" / entry.parent.name / f"{entry.name}.json"


def _write(entry: Path, seal: seals.Seal) -> None:
    file = _seal_of(entry)
    with contextlib.suppress(OSError):  # a cache that this user may only read
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(file, seal)


def _stats(file: Path) -> dict[str, int]:
    found = file.stat()
    return {"modified": found.st_mtime_ns, "inode": found.st_ino}


def _is_untouched(file: Path, known: dict[str, object]) -> bool:
    try:
        return _stats(file) == {name: known.get(name) for name in ("modified", "inode")}
    except OSError:
        return False


def _unread(listed: seals.Seal, changed: set[str]) -> set[str]:
    """The untouched files that are not read this time: what is left when ``BOUND`` bytes of them have been, or one file."""
    untouched = sorted(set(listed) - changed)
    random.Random().shuffle(untouched)  # not from the global generator, which a run seeds
    left, unread = BOUND, set()
    for path in untouched:
        size = int(listed[path]["bytes"])
        if size > left and left < BOUND:
            unread.add(path)
        else:
            left -= size
    return unread
