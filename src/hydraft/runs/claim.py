"""Whether a folder may become a run's, and claiming it: by a whole ``config.yaml`` or not at all. No torch."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hydraft.config.schema import Config, load_config, saved
from hydraft.errors import ConfigError
from hydraft.system import files
from hydraft.system.source_tree import ROOT

CONFIG = "config.yaml"

BEFORE_A_RUN = re.compile(
    r"\.lock|\.{1,2}holder\.json.*|\.{1,3}config\.yaml.*|job\.(log|sbatch)|slurm.*\.(log|out|err)|\.hydra|\.nfs.*|lost\+found"
)
"""Names of what is in a folder before a run begins there: its lock, the files of a start that failed, a job's log, a batch script,
and what file systems make."""

OF_PROJECT = (".git", ".github", ".venv", "bench", "conf", "data", "docs", "src", "tests")
"""Folders of the project that no run is saved in."""

ELSEWHERE = "give another folder with hydra.run.dir=…"


@contextmanager
def writable(folder: Path, setting: str = "hydra.run.dir") -> Iterator[None]:
    """While the block prepares a run in ``folder``, report that files cannot be written there as an error of the user.

    Args:
        folder: of a run, or of a sweep.
        setting: with which another one is given.

    Raises:
        ConfigError: the disk is full, or the folder or its file system cannot be written to.
    """
    try:
        yield
    except OSError as error:
        named = None if error.filename is None else Path(os.fsdecode(error.filename))
        place = "" if named is None or named == folder else f" ({named.name if named.parent == folder else named})"
        room = "free space there, or " if files.is_full(error) else ""
        raise ConfigError(
            f"{folder}: {error.strerror or error}{place}: {room}give another folder with {setting}=…"
        ) from error


def check(folder: Path, typed: str, hydra_folder: str | None = None) -> None:
    """Refuse a folder that is not for a new run and holds none; nothing is written.

    Args:
        folder: as an absolute path.
        typed: ``hydra.run.dir``.
        hydra_folder: ``hydra.output_subdir``, the folder in it that Hydra writes to, if it does.

    Raises:
        ConfigError: says what is there.
    """
    place = f"hydra.run.dir={typed}"
    refuse_place(folder, typed, "hydra.run.dir")
    try:
        found = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}: give another folder") from None
    if CONFIG in found:
        if hydra_folder:  # Hydra writes there before this run's config can be compared
            read(folder)
        return
    if other := _others(folder, [name for name in found if name != Path(hydra_folder or "").name]):
        raise ConfigError(
            f"{place}: holds {_listed(other)} and no run: give an empty folder, or one that is not there yet"
        )


def refuse_place(folder: Path, typed: str, setting: str) -> None:
    """Refuse what is no folder of its own: a file, the project, a home, the working directory.

    Raises:
        ConfigError: names the setting.
    """
    place = f"{setting}={typed}"
    if not typed.strip():
        raise ConfigError(f"{place}: is empty: give a folder")
    try:
        _refuse_known(folder, typed, place)
    except OSError as error:  # too long a name, or a folder above it that cannot be entered
        raise ConfigError(f"{place}: {error.strerror}: give another folder") from None


def _refuse_known(folder: Path, typed: str, place: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{place}: is a file: give a folder")
    if typed.startswith("~") and not folder.exists():
        raise ConfigError(f"{place}: the shell did not put a home there: give the whole path")
    if (folder / CONFIG).is_file():  # what is in it decides
        return
    for path, what in _taken():
        if folder == path or (folder.exists() and path.exists() and folder.samefile(path)):
            raise ConfigError(f"{place}: is {what}: give a folder for this alone")
    resolved = folder.resolve()
    inside = resolved.relative_to(ROOT).parts if resolved.is_relative_to(ROOT) else ()
    if len(inside) > 1 and inside[0] in OF_PROJECT:
        raise ConfigError(
            f"{place}: is in {inside[0]}, a folder of the project: give another, such as outputs/{folder.name}"
        )
    for inner, outer in zip(folder.parents, folder.parents[1:], strict=False):
        if inner.name in ("adapter", "model", "checkpoints") and (outer / CONFIG).is_file():
            raise ConfigError(f"{place}: is in {inner}, which another run replaces: give another folder")


def _taken() -> list[tuple[Path, str]]:
    found = [
        (Path("/"), "the root of the file system"),
        (ROOT, "the project's folder"),
        (Path.cwd(), "the working directory"),
    ]
    with suppress(RuntimeError):  # a user without a home
        found.append((Path.home(), "a home"))
    return found


def _others(folder: Path, names: list[str]) -> list[str]:
    """Those of ``names`` in ``folder`` that are not of a run that is about to begin."""
    streams = []
    for handle in (1, 2):
        with suppress(OSError):
            streams.append(os.fstat(handle))
    others = []
    for name in names:
        try:
            about = os.lstat(folder / name)
        except OSError:
            continue
        printed = any(os.path.samestat(about, stream) for stream in streams)  # … > outputs/mine/log.txt
        empty_log = name == "train.log" and about.st_size == 0  # of hydra/job_logging
        if not (BEFORE_A_RUN.fullmatch(name) or printed or empty_log):
            others.append(name)
    return others


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def holds_run(folder: Path, config: Config) -> bool:
    """Whether there is a run in ``folder``. One whose config was cut off before anything else was written is none.

    Args:
        folder: of a run.
        config: of the run that is to begin there.

    Raises:
        ConfigError: its ``config.yaml`` is damaged, and there is more of a run.
    """
    file = folder / CONFIG
    if not file.exists():
        return False
    if not _is_cut_off(file, config):
        return True
    others = _others(folder, sorted(set(os.listdir(folder)) - {CONFIG}))
    if not others:
        return False
    try:
        load_config(file)  # of an earlier version, which had fewer settings
    except ConfigError:
        raise ConfigError(
            f"{folder}: its config.yaml is cut off, and {_listed(others)} of a run is there: put config.yaml back from a copy, or "
            f"{ELSEWHERE}"
        ) from None
    return True


def read(folder: Path) -> Config:
    """The config of the run in ``folder``.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return load_config(folder / CONFIG)
    except ConfigError as error:
        raise ConfigError(f"hydra.run.dir={folder}: {error}: give another folder") from None


def _is_cut_off(file: Path, config: Config) -> bool:
    """Whether a file has the beginning of a config's text: its lines up to one have the same keys."""
    try:
        data = file.read_bytes().rstrip(b"\0")  # blocks that a power cut left empty
    except OSError:
        return False
    if not data:
        return True
    *found, last = data.decode("utf-8", "replace").split("\n")
    expected = saved(config).split("\n")
    whole = [_key(line) for line in expected]
    if [_key(line) for line in found] != whole[: len(found)] or len(found) >= len(expected) - 1:
        return False
    return last == "" or expected[len(found)].startswith(last) or _key(last) == whole[len(found)]


def _key(line: str) -> str:
    return line.partition(":")[0]


def claim(folder: Path, config: Config) -> None:
    """Write ``config.yaml``, with which the folder is this run's; of two processes only one succeeds.

    Raises:
        ConfigError: a run is in it already.
        OSError: it could not be written; there is none then.
    """
    file = folder / CONFIG
    if file.exists() and not holds_run(folder, config):
        file.unlink()
    staging = folder / f".{CONFIG}.{os.getpid()}"
    try:
        files.write_text(staging, saved(config))
        _link(staging, file)
    except FileExistsError:
        raise ConfigError(f"hydra.run.dir={folder}: a run is in it already; give another folder") from None
    except OSError as error:
        error.filename = str(file)
        raise
    finally:
        staging.unlink(missing_ok=True)


def _link(staging: Path, file: Path) -> None:
    """Give a file its name unless there is one of that name."""
    try:
        os.link(staging, file)
    except FileExistsError:
        raise
    except OSError as error:  # a file system without links; the run's lock is held
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK):
            raise
        if file.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(file)) from None
        staging.rename(file)
    files.sync_folder(file.parent)
