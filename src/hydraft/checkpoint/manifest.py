"""Verifies checkpoints: a manifest lists the files of a folder with their sizes and sha256. No torch.

The manifest is the last file of a checkpoint, and the folder gets its name when all files are on disk. So a checkpoint is complete
unless it was changed later, which verification detects.
"""

import json
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from hydraft.system import seals
from hydraft.system.files import write_json

NAME = "manifest.json"
OPTIMIZER = "optimizer.safetensors"
OF_RESUME = (OPTIMIZER,)
"""Large files of a checkpoint that only a run reads that resumes."""
UNSEALED = ("probe.json",)
"""Files that are added to a folder after it has been sealed."""
INTERRUPTED = re.compile(r"\.step-\d+\.(gone|(staging-[0-9a-f]{8}|[a-z0-9_]{8})(\.old|\.gone)?)")
"""Names of what a save or a removal that was interrupted leaves, in this version and earlier ones."""


def seal(folder: Path, known: dict[str, str] | None = None) -> None:
    """Write the manifest of ``folder``. ``known``: the sha256 of files that need not be read for it."""
    write_json(folder / NAME, seals.of(folder, seals.SHA256, known))


def listed(folder: Path) -> set[str]:
    """The names of what was written to ``folder``: what its manifest lists, the manifest, and what is added behind it."""
    try:
        known = json.loads((folder / NAME).read_text(encoding="utf-8"))
        return {name.partition("/")[0] for name in known} | {NAME, *UNSEALED}
    except (OSError, ValueError, AttributeError, TypeError):
        return {NAME, *UNSEALED}


def fault(folder: Path, read: bool = True, unread: Collection[str] = ()) -> str | None:
    """What is wrong with a folder that has a manifest; None if every file is as it was written.

    With ``read=False`` only the sizes of files are verified, which is fast; of the files ``unread`` that is always so.
    """
    listed = seals.read(folder / NAME)
    if listed is None:
        return f"{NAME} is missing or damaged"
    return seals.fault(folder, listed, unread if read else listed)


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, newest last. Incomplete ones have other names."""
    return sorted(filter(is_checkpoint, (run / "checkpoints").glob("step-*")), key=step_of)


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder has the name of a complete checkpoint."""
    return re.fullmatch(r"step-\d+", folder.name) is not None


def step_of(checkpoint: Path) -> int:
    """The optimizer step of a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def newest(run: Path, unread: Collection[str] = ()) -> tuple[Path | None, list[str]]:
    """The newest valid checkpoint, and a line for each newer one that is skipped; ``unread``: files that are not read for it."""
    notes: list[str] = []
    for checkpoint in reversed(checkpoints(run)):
        wrong = fault(checkpoint, unread=unread)
        if wrong is None:
            return checkpoint, notes
        notes.append(f"{checkpoint.name} is skipped: {wrong}")
    return None, notes


def retain(run: Path, keep_last: int, best: int | None) -> None:
    """Remove all valid checkpoints except the newest ``keep_last`` and that of step ``best``.

    Invalid ones are not counted and not removed, and one in which a person has put files is not removed either.
    """
    valid = [path for path in checkpoints(run) if fault(path, read=False) is None]
    for path in valid[:-keep_last]:
        if step_of(path) != best and {entry.name for entry in path.iterdir()} <= listed(path):
            gone = path.with_name(f".{path.name}.gone")
            path.rename(gone)  # not a checkpoint any more, even if removing its files is interrupted
            shutil.rmtree(gone)
    clear_interrupted(run / "checkpoints")


def clear_interrupted(folder: Path) -> None:
    """Remove what a save or a removal that was interrupted left in ``folder``."""
    for rest in folder.glob(".step-*"):
        if INTERRUPTED.fullmatch(rest.name):
            shutil.rmtree(rest, ignore_errors=True)
