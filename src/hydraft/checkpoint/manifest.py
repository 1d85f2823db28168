"""Whether a folder is what was written: a list of its files with their sizes and sha256. No torch.

A checkpoint gets its list last, in a folder that takes its name only when all of it is on the disk; so one that is there is
whole, unless the disk or a person changed it, which reading it again shows.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from hydraft.system.files import write_json

NAME = "manifest.json"
CHUNK = 1 << 24


def seal(folder: Path, known: dict[str, str] | None = None) -> None:
    """Write the list of everything that is in ``folder`` now; ``known``: the sha256 of files that need not be read again."""
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    write_json(folder / NAME, {name: _entry(file, (known or {}).get(name)) for name, file in files.items()})


def fault(folder: Path, read: bool = True) -> str | None:
    """What is wrong with a sealed folder; None if every file is as it was written.

    ``read`` false trusts files of the right size, where reading all of them would cost too much.
    """
    try:
        listed = json.loads((folder / NAME).read_text(encoding="utf-8"))
        assert isinstance(listed, dict)
    except (OSError, ValueError, AssertionError):
        return f"{NAME} is missing or damaged"
    for name, entry in listed.items():
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["bytes"] or (read and _entry(file) != entry):
            return f"{name} is not as it was written"
    return None


def _entry(file: Path, known: str | None = None) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": known or _sha256(file)}


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while data := stream.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run, newest last; what was left half-written does not have such a name."""
    found = [path for path in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that were made when it was saved."""
    return int(checkpoint.name.removeprefix("step-"))


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole, and a line for each newer one that is passed over."""
    notes: list[str] = []
    for checkpoint in reversed(checkpoints(run)):
        wrong = fault(checkpoint)
        if wrong is None:
            return checkpoint, notes
        notes.append(f"{checkpoint.name} is passed over: {wrong}")
    return None, notes


def retain(run: Path, keep_last: int, best: int | None) -> None:
    """Remove all but the newest ``keep_last`` whole checkpoints and the one of step ``best``.

    One that is not whole does not count, and is left for a person to look at.
    """
    whole = [path for path in checkpoints(run) if fault(path, read=False) is None]
    for path in whole[:-keep_last]:
        if step_of(path) != best:
            gone = path.with_name(f".{path.name}.gone")
            path.rename(gone)  # at once out of sight, whatever happens while files go one by one
            shutil.rmtree(gone)
    for left in (run / "checkpoints").glob(".step-*"):  # of a save or a removal that was cut off
        shutil.rmtree(left, ignore_errors=True)
