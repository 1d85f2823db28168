"""The folder of a run: creating, describing, locking and finding it. No torch.

``config.yaml`` · ``plan.json`` · ``environment.json`` · ``metrics.jsonl`` · ``train.log`` · ``rank-N.log`` ·
``checkpoints/`` · ``adapter/`` (or ``model/``) · ``loss.png`` · ``scores.jsonl`` ·
``result.json``.
"""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydraft.config import printed
from hydraft.config.schema import Config, saved
from hydraft.errors import ConfigError
from hydraft.runs import claim
from hydraft.system import program
from hydraft.system.files import clear_staging, version_of, write_json, write_text
from hydraft.system.hardware import Hardware
from hydraft.system.line_file import NO_LOCKS
from hydraft.system.processes import ProcessId
from hydraft.system.redaction import redact, redact_command, redact_text
from hydraft.system.source_tree import ROOT

if TYPE_CHECKING:
    from hydraft.plan.plan import Plan

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


def create(folder: Path, config: Config, plan: "Plan", hardware: Hardware | None) -> None:
    """Claim ``folder`` for a run and write its config, plan and environment; ``hardware`` is None if it is not known yet.

    Raises:
        ConfigError: the folder already holds a run, or cannot be written to; it is as it was.
    """
    with claim.writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        claim.claim(folder, config)
        keep_private(folder)
        try:
            _write_plan(folder, plan, hardware)
        except BaseException:
            for name in (claim.CONFIG, "plan.json", "environment.json"):
                (folder / name).unlink(missing_ok=True)
            raise


def describe(folder: Path, config: Config, plan: "Plan", hardware: Hardware | None) -> None:
    """Write config.yaml, plan.json and environment.json of the run in ``folder``, each as a whole.

    Raises:
        ConfigError: the folder cannot be written to.
    """
    with claim.writable(folder):
        for name in ("adapter", "model"):
            clear_staging(folder / name)
        write_text(folder / claim.CONFIG, saved(config))
        keep_private(folder)
        _write_plan(folder, plan, hardware)


def _write_plan(folder: Path, plan: "Plan", hardware: Hardware | None) -> None:
    write_json(folder / "plan.json", redact(plan.to_dict()))
    write_json(folder / "environment.json", _environment(hardware))


def keep_private(folder: Path, name: str = "config.yaml") -> None:
    """Let only its owner read a config if a secret is in it; a run is restarted from that file, so it keeps the secret."""
    file = folder / name
    with suppress(OSError, ValueError):
        text = file.read_text(encoding="utf-8")
        if redact_text(text) != text:
            file.chmod(0o600)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock the run in ``folder`` against all other processes, on any host, until the block ends.

    The kernel releases ``.lock`` when its holder ends. On a file system without such locks, there is none.

    Raises:
        ConfigError: another process holds the lock, or the folder cannot be written to.
    """
    from filelock import FileLock, Timeout

    lock, holder = FileLock(folder / ".lock", fallback_to_soft=False), folder / ".holder.json"
    with claim.writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise ConfigError(f"{folder}: {_who(holder)} is running it: wait until it ends, or stop it first") from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
    try:
        with claim.writable(folder):
            write_json(holder, this_process())
        yield
    finally:
        with suppress(OSError):  # a folder that is gone, or a file system that has become read-only, must not hide why
            holder.unlink(missing_ok=True)
            if not (folder / claim.CONFIG).exists():  # no run has begun
                (folder / ".lock").unlink(missing_ok=True)
        lock.release()


def this_process() -> dict[str, Any]:
    """This process by host, id and start time, for another program that has to find it again."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": ProcessId.of(os.getpid()).started}


def _who(holder: Path) -> str:
    try:
        known = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {known['pid']} on {known['host']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"


def status(folder: Path) -> str | None:
    """The status of the run in ``folder`` at its end; None if it has not ended."""
    try:
        found = json.loads((folder / "result.json").read_text(encoding="utf-8")).get("status")
    except (OSError, ValueError, AttributeError):
        return None
    return None if found is None else str(found)


def objective(folder: Path) -> float | None:
    """The objective of the run in ``folder``: its held-out loss, or else its training loss."""
    found = json.loads((folder / "result.json").read_text(encoding="utf-8")).get("objective")
    return None if found is None else float(found)


def _debugs(config: Path) -> bool:
    """Whether a run's config is one of ``debug=``, whose result is not what anyone wants."""
    if "debug" in config.parts[1:-1] and config.parts[1] == "debug":
        return True
    try:
        text = config.read_text(encoding="utf-8").partition("\ndebug:\n")[2]
    except (OSError, UnicodeDecodeError):
        return False
    return any(line.split() not in (["kind:", "none"], ["cpu:", "false"]) for line in text.splitlines()[:2])


def not_learned(folder: Path) -> str | None:
    """The verdict of the run in ``folder``, one of ``debug=overfit``, on a batch that was not learned; None otherwise."""
    found = json.loads((folder / "result.json").read_text(encoding="utf-8")).get("debug") or {}
    return None if found.get("learned", True) else str(found["verdict"])


def _environment(hardware: Hardware | None) -> dict[str, Any]:
    return {
        "command": redact_command(program.words()),
        "python": sys.version.split()[0],
        "packages": {name: version_of(name) for name in PACKAGES},
        "commit": _commit(),
        "hardware": hardware.to_dict() if hardware else None,
    }


def _commit() -> str | None:
    """The checked-out commit, read from the files of .git, which is faster than starting git."""
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
        trained = [config for config in reversed(configs) if not _debugs(config)]
        newest = next(iter(trained), None)
        if newest is None:
            only = f": {configs[-1].parent} is one of debug=, give its folder" if configs else ""
            raise ConfigError(f"{setting}=last: no run below outputs/{only}; train one with {program.typed('train')}")
        return newest.parent
    folder = Path(run)
    if not (folder / claim.CONFIG).is_file():
        raise ConfigError(f"{setting}={run}: not a run's folder (no config.yaml in it)")
    if setting == "resume" and (folder / claim.CONFIG).stat().st_size == 0:
        raise ConfigError(
            f"{setting}={run}: its config.yaml is empty, since the disk was full when it was to begin: give its own command again, "
            f"with {printed.override('hydra.run.dir', run)}"
        )
    return folder
