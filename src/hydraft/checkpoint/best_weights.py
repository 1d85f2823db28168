"""The weights of the best evaluation, in ``best/step-000120/`` of a run's folder, for ``train.keep=best``. No torch.

A folder holds what ``weights.save`` writes, the scores of each record in that evaluation and the probe. It is written before a
checkpoint names it (``TrainingState.best_step``), and removed when neither the run nor a checkpoint that is kept names it any more: so a
run that goes back to an earlier checkpoint finds the weights that were the best then.
"""

import json
import shutil
from pathlib import Path

from hydraft.checkpoint import manifest, training_state
from hydraft.evaluation import record_scores
from hydraft.system import files

NAME = "best"
LEFT_OUT = (manifest.NAME, record_scores.FILE)
"""Files that an adapter or model does not have, or has anew."""


def folder_of(run: Path, step: int) -> Path:
    """Where the weights of the evaluation after ``step`` are."""
    return run / NAME / f"step-{step:06d}"


def saved(run: Path) -> list[Path]:
    """The folders of all evaluations whose weights are there, by step."""
    found = [path for path in (run / NAME).glob("step-*") if manifest.is_checkpoint(path)]
    return sorted(found, key=manifest.step_of)


def fault(run: Path, step: int) -> str | None:
    """What is wrong with the weights of ``step``; None if they are as they were written."""
    folder = folder_of(run, step)
    return manifest.fault(folder) if folder.is_dir() else "they are not there"


def prune(run: Path, current: int | None) -> None:
    """Remove the weights that neither the run, whose best step is ``current``, nor one of its checkpoints needs."""
    if not (run / NAME).is_dir():
        return
    needed = {current, *(_named_by(checkpoint) for checkpoint in manifest.checkpoints(run))}
    for folder in saved(run):
        if manifest.step_of(folder) not in needed:
            _remove(folder)
    manifest.clear_interrupted(run / NAME)


def drop_after(run: Path, step: int) -> None:
    """Remove the weights of evaluations after ``step``, from which the run resumes: they are evaluated again."""
    for folder in saved(run):
        if manifest.step_of(folder) > step:
            _remove(folder)


def _named_by(checkpoint: Path) -> int | None:
    try:
        found = json.loads((checkpoint / training_state.FILE).read_text(encoding="utf-8")).get("best_step")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, int) else None


def _remove(folder: Path) -> None:
    """Remove a folder, unless a person has put files in it."""
    if not {entry.name for entry in folder.iterdir()} <= manifest.listed(folder):
        return
    gone = folder.with_name(f".{folder.name}.gone")
    folder.rename(gone)  # not to be used any more, even if removing its files is interrupted
    shutil.rmtree(gone)


def install(run: Path, step: int, target: Path) -> None:
    """Copy the weights of ``step`` to ``target``, the run's adapter or model, and its scores of each record to the run's folder.

    Raises:
        RuntimeError: they are damaged.
        OSError: ``target`` could not be written; it is unchanged.
    """
    folder = folder_of(run, step)
    wrong = fault(run, step)
    if wrong is not None:
        raise RuntimeError(f"{folder} cannot be kept as {target.name}: {wrong}")
    with files.staged_folder(target, manifest.listed) as staging:
        shutil.copytree(folder, staging, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        manifest.seal(staging)
    if (folder / record_scores.FILE).is_file():
        files.write_bytes(run / record_scores.FILE, (folder / record_scores.FILE).read_bytes())
