"""Verifies checkpoints: a manifest lists the files of a folder with their sizes and sha256. No torch.

The manifest is the last file of a checkpoint, and the folder gets its name when all files are on disk. So a checkpoint is complete
unless it was changed later, which verification detects.
"""

import json
import re
import shutil
from pathlib import Path

from hydraft.system import seals
from hydraft.system.files import write_json

NAME = "manifest.json"
UNSEALED = ("probe.json",)
"""Files that are added to a folder after it has been sealed."""


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


def fault(folder: Path, read: bool = True) -> str | None:
    """What is wrong with a folder that has a manifest; None if every file is as it was written.

    With ``read=False`` only the sizes of files are verified, which is fast.
    """
    listed = seals.read(folder / NAME)
    if listed is None:
        return f"{NAME} is missing or damaged"
    return seals.fault(folder, listed, () if read else listed)


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, newest last. Incomplete ones have other names."""
    found = [path for path in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step of a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest valid checkpoint, and a line for each newer one that is skipped."""
    notes: list[str] = []
    for checkpoint in reversed(checkpoints(run)):
        wrong = fault(checkpoint)
        if wrong is None:
            return checkpoint, notes
        notes.append(f"{checkpoint.name} is skipped: {wrong}")
    return None, notes


def retain(run: Path, keep_last: int, best: int | None) -> None:
    """Remove all valid checkpoints except the newest ``keep_last`` and that of step ``best``.

    Invalid ones are not counted and not removed.
    """
    valid = [path for path in checkpoints(run) if fault(path, read=False) is None]
    for path in valid[:-keep_last]:
        if step_of(path) != best:
            gone = path.with_name(f".{path.name}.gone")
            path.rename(gone)  # not a checkpoint any more, even if removing its files is interrupted
            shutil.rmtree(gone)
    for rest in (run / "checkpoints").glob(".step-*"):  # of a save or a removal that was interrupted
        shutil.rmtree(rest, ignore_errors=True)
