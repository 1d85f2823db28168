"""A run's folder: what stands in it, and writing it so that no reader ever sees half a file. No torch.

``config.yaml`` · ``plan.json`` · ``environment.json`` · ``metrics.jsonl`` · ``train.log`` · ``rank-N.log`` ·
``checkpoints/`` · ``adapter/`` (or ``model/``) · ``loss.png`` · ``result.json``.
"""

import errno
import json
import math
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydraft.config import ROOT, Config, ConfigError, save_config
from hydraft.hardware import Hardware

if TYPE_CHECKING:
    from hydraft.plan import Plan

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "deepspeed",
    "bitsandbytes",
    "accelerate",
    "datasets",
    "hydra-core",
    "wandb",
)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` whole or not at all: a neighbouring file, flushed to disk, then renamed."""
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
    """``write_text`` of indented JSON, Chinese kept readable."""
    write_text(path, json.dumps(finite(value), ensure_ascii=False, indent=2, default=str) + "\n")


def finite(value: Any) -> Any:
    """``value`` with null in place of NaN and the infinities, inside dicts and lists too: JSON does not have them."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Fill a folder beside ``target``, which takes its place only when all of it is on the disk.

    If the block raises (a full disk, say), ``target`` stays what it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield staging
        staging.chmod(0o755)
        for file in staging.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors makes files that only their owner may read
            sync_folder(file)  # fsync takes files the same way
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
    """Where what can be made again is kept, ``kind`` by kind: ``$HYDRAFT_CACHE`` or the user's cache folder."""
    base = os.environ.get("HYDRAFT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "hydraft"
    return Path(base) / kind


def create(folder: Path, config: Config, plan: "Plan", hardware: Hardware | None) -> None:
    """Claim ``folder`` for a run and write down what it is; ``hardware`` is None where it is not known yet.

    Raises:
        ConfigError: the folder already holds a run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / "config.yaml").touch(exist_ok=False)  # the claim: one of two runs gets it
    except FileExistsError:
        raise ConfigError(f"hydra.run.dir={folder}: a run is in it already; name another folder") from None
    describe(folder, config, plan, hardware)


def describe(folder: Path, config: Config, plan: "Plan", hardware: Hardware | None) -> None:
    """Write down what the run in ``folder`` is, or has become."""
    staging = folder / ".config.yaml"
    save_config(config, staging)
    staging.replace(folder / "config.yaml")
    write_json(folder / "plan.json", plan.to_dict())
    write_json(folder / "environment.json", _environment(hardware))


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep every other process, on whatever host, from running the run in ``folder`` meanwhile.

    The kernel lets go of ``.lock`` when its holder ends, however it ends. A file system without such locks goes without.

    Raises:
        ConfigError: one is at it already.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / ".lock", fallback_to_soft=False), folder / ".holder.json"
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ConfigError(f"{folder}: {_who(holder)} is running it: wait for its end, or stop it first") from None
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
    try:
        write_json(holder, {"host": socket.gethostname(), "pid": os.getpid()})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _who(holder: Path) -> str:
    try:
        known = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {known['pid']} on {known['host']}"
    except (OSError, ValueError):
        return "another process"


def status(folder: Path) -> str | None:
    """How the run in ``folder`` ended; None if it has not."""
    try:
        found = json.loads((folder / "result.json").read_text(encoding="utf-8")).get("status")
    except (OSError, ValueError):
        return None
    return None if found is None else str(found)


def objective(folder: Path) -> float | None:
    """What the run in ``folder`` came to: its held-out loss, or else its training loss."""
    found = json.loads((folder / "result.json").read_text(encoding="utf-8")).get("objective")
    return None if found is None else float(found)


def _environment(hardware: Hardware | None) -> dict[str, Any]:
    return {
        "command": sys.argv,
        "python": sys.version.split()[0],
        "packages": {name: version_of(name) for name in PACKAGES},
        "commit": _commit(),
        "hardware": hardware.to_dict() if hardware else None,
    }


def version_of(name: str) -> str | None:
    """Of an installed package; None where it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checked-out commit, read from .git itself: starting git costs more than all else here."""
    git = ROOT / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        reference = git / head.removeprefix("ref: ")
        if reference.exists():
            return reference.read_text().strip()
        for line in (git / "packed-refs").read_text().splitlines():
            if line.endswith(head.removeprefix("ref: ")):
                return line.split()[0]
    except OSError:
        pass
    return None


def find(run: str, setting: str = "run") -> Path:
    """The folder of ``run``: a path, or ``last`` for the newest below ``outputs/``.

    Raises:
        ConfigError: there is no such run.
    """
    if run == "last":
        configs = sorted(Path("outputs").glob("**/config.yaml"), key=lambda path: path.stat().st_mtime)
        if not configs:
            raise ConfigError(f"{setting}=last: no run below outputs/; train one with python train.py")
        return configs[-1].parent
    folder = Path(run)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{setting}={run}: not a run's folder (no config.yaml in it)")
    return folder
