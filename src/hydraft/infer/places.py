"""Which folder of weights ``run=`` means: that of a run, of a sweep's best job, of a checkpoint, or of the best evaluation. No torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hydraft.checkpoint import best_weights, manifest
from hydraft.config.schema import load_config
from hydraft.errors import ConfigError
from hydraft.evaluation import standing
from hydraft.evaluation.metrics import Scores
from hydraft.runs import loss_plot, run_folder
from hydraft.system import files, program

if TYPE_CHECKING:
    from hydraft.sweep.results.outcome import Outcome

BEST, LAST = "best", "last"
SWEEP = ("sweep.json", "multirun.yaml")
"""Files of which a sweep's folder has one: of this program, and of Hydra."""


@dataclass(frozen=True)
class Place:
    """A folder of weights."""

    folder: Path
    run: Path | None
    """The run's folder, if it is in one."""
    notes: list[str] = field(default_factory=list)
    """What was chosen where the command line leaves a choice, one line each."""


def find(typed: str) -> Place:
    """The folder that ``run=typed`` means.

    Raises:
        ConfigError: there is none.
    """
    if typed == BEST:
        return _of_sweep(_newest_sweep(), typed)
    if typed == LAST:
        return _of_run(run_folder.find(LAST), typed)
    folder = Path(typed).expanduser()
    if folder.name == BEST and not _is_run(folder):
        if _is_run(folder.parent):
            return _of_best_evaluation(folder.parent, typed)
        if _is_sweep(folder.parent):
            return _of_sweep(folder.parent, typed)
    if not folder.is_dir():
        raise ConfigError(f"run={typed}: no such folder")
    if _is_run(folder):
        return _of_run(folder, typed)
    if _is_sweep(folder):
        return _of_sweep(folder, typed)
    return Place(folder, next(filter(_is_run, (folder.parent, folder.parent.parent)), None))


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def _is_sweep(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SWEEP)


def _newest_sweep() -> Path:
    from hydraft.sweep import sweep_folder  # with what reads a sweep, a quarter of a second

    try:
        return sweep_folder.find(LAST)
    except ConfigError:
        raise ConfigError(f"run=best: no sweep below multirun/; start one with {program.typed('train')} -m …") from None


def _of_sweep(sweep: Path, typed: str) -> Place:
    """The weights of the best job, by the first objective; with several seeds, of the best seed of the best point."""
    from hydraft.sweep.results import reading

    found = reading.read(sweep)
    if found.best is None:
        raise ConfigError(f"run={typed}: no job of the sweep {sweep} has a result ({found.counts})")
    job = best_seed(found.best, found.minimize[0])
    value = f"{found.objectives[0]} {job.objectives[0]:.4g}"
    place = _of_run(job.folder, typed)
    chosen = f"{sweep}: of {len(found.jobs):,} jobs the best one answers, {job.job.name} ({value})"
    return Place(place.folder, place.run, [chosen, *place.notes])


def best_seed(best: "Outcome", minimize: bool) -> "Outcome":
    """Of a point with several seeds, the job whose first objective is the best; a job itself."""
    from hydraft.sweep.results.points import Point

    if not isinstance(best, Point):
        return best
    return min(best.done, key=lambda one: one.objectives[0] if minimize else -one.objectives[0])


def _of_run(run: Path, typed: str) -> Place:
    """The weights that a run has saved at its end; without any, those of its newest checkpoint that is whole."""
    saved = next((part for part in (run / "model", run / "adapter") if part.is_dir()), None)
    if saved is not None:
        return Place(saved, run)
    checkpoint, skipped = manifest.newest(run, manifest.OF_RESUME)
    notes = [f"{run}: {line}" for line in skipped]
    if checkpoint is None:
        damaged = "".join(f"; {line}" for line in skipped)
        raise ConfigError(f"run={typed}: it saved no adapter ({_status(run)}{damaged})")
    step, total = manifest.step_of(checkpoint), files.read_object(run / "plan.json").get("steps")
    of = f" of {total:,}" if isinstance(total, int) else ""
    chosen = f"{run}: the run is not finished ({_status(run)}): the checkpoint of step {step:,}{of} answers"
    return Place(checkpoint, run, [*notes, chosen])


def _of_best_evaluation(run: Path, typed: str) -> Place:
    """Of the evaluations whose weights are there, those of the best one: kept by ``train.keep=best``, or in a checkpoint."""
    by = load_config(run / "config.yaml").train.best_by
    scores = _evaluations(run)
    there = {manifest.step_of(folder): folder for folder in [*manifest.checkpoints(run), *best_weights.saved(run)]}
    notes: list[str] = []
    while (step := standing.best(scores, by, there)) is not None:
        folder = there.pop(step)
        wrong = manifest.fault(folder, unread=manifest.OF_RESUME)
        if wrong is None:
            break
        notes.append(f"{folder} is skipped: {wrong}")
    else:
        raise ConfigError(
            "; ".join(
                [
                    f"run={typed}: there are no weights of an evaluation: use run={run}, and train with train.keep=best",
                    *notes,
                ]
            )
        )
    name, best = by.replace("_", " "), standing.best(scores, by)
    notes.append(f"{run}: the weights of step {step:,} answer ({name} {scores[step][by]:.4g})")
    if best is not None and best != step:
        notes[-1] += f"; those of step {best:,}, the best ({scores[best][by]:.4g}), are not there"
    return Place(folder, run, notes)


def _evaluations(run: Path) -> dict[int, Scores]:
    """The scores of a run's evaluations by step, from metrics.jsonl."""
    prefix = "eval_"
    found: dict[int, Scores] = {}
    for line in loss_plot.read_metrics(run):
        scores = {key.removeprefix(prefix): value for key, value in line.items() if key.startswith(prefix)}
        if scores and isinstance(line.get("step"), int):
            found[line["step"]] = scores
    return found


def _status(run: Path) -> str:
    result = files.read_object(run / "result.json")
    if not result:
        return "it has not ended"
    error = result.get("error")
    return f"status {result.get('status')}" + (f", {error['cause']}" if isinstance(error, dict) else "")
