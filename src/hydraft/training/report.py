"""The results of a run: result.json, the loss plot, the summary on the dashboard, and the final table in the terminal."""

from pathlib import Path
from typing import Any

from hydraft.config import printed
from hydraft.config.schema import Config
from hydraft.evaluation.metrics import shown
from hydraft.plan import plan
from hydraft.runs import loss_plot
from hydraft.system import files
from hydraft.system.console import Screen
from hydraft.tracking.base import Tracker

SUMMARY = ("train_loss", "tokens", "train_seconds", "peak_memory_bytes", "trained_parameters")
"""Values of result.json that are also sent to the dashboard."""


def write_result(config: Config, folder: Path, result: dict[str, Any], trained: Path, tracker: Tracker) -> None:
    """Write result.json and the loss plot, and finish the run on the dashboard. ``trained``: the saved adapter or model."""
    files.write_json(folder / "result.json", result)
    loss_plot.draw_loss(folder, plan.headline(config))
    if config.tracker.upload:
        tracker.upload(trained)
    scores = {f"{when}/{name}": value for when in ("before", "best", "after") for name, value in result[when].items()}
    scores |= {f"kept/{name}": value for name, value in result.get("kept", {}).items() if name != "best_by"}
    scores |= {f"ended_early/{name}": value for name, value in result.get("ended_early", {}).items()}
    tracker.finish({"objective": result["objective"], **scores, **{name: result[name] for name in SUMMARY}})


def show_result(screen: Screen, folder: Path, result: dict[str, Any], seconds: float) -> None:
    """Print the final table, and a command that tries the result."""
    before, after = result["before"], result["after"]
    rows = [
        [f"held-out {name.replace('_', ' ')}", shown(name, before[name]), shown(name, after[name])] for name in after
    ]
    best, kept, ended = result["best"], result.get("kept"), result.get("ended_early")
    if kept is None and best.get("step") not in (None, 0, result["steps"]):
        rows.insert(1, [f"best, at step {best['step']:,}", "", _shown("loss", best["loss"])])
    if kept is not None:
        rows.append(["weights that are kept", "", f"step {kept['step']:,}"])
    speed = result["tokens"] / result["train_seconds"]
    rows += [
        *([["started from", result["start"], ""]] if "start" in result else []),
        ["training loss", "", f"{result['train_loss']:.3f}"],
        ["steps", "", f"{result['steps']:,}" + ("" if ended is None else f" of {ended['of']:,}, ended early")],
        ["tokens/s", "", f"{speed:,.0f}"],
        *_peaks(result),
        ["trained parameters", "", f"{result['trained_parameters']:,}"],
        ["time", "", f"{seconds:.0f} s"],
    ]
    screen.progress.stop()
    screen.table(str(folder), ["", "before", "after"], rows)
    screen.say(f'try it: {printed.command("infer.py", printed.override("run", _short(folder)))} prompt="…"')


def _peaks(result: dict[str, Any]) -> list[list[str]]:
    """Rows of peak memory: with a GPU, of training and of evaluation."""
    training, evaluation = result["peak_memory_bytes"], result["peak_memory_scoring_bytes"]
    if result["peak_memory_loading_bytes"] is None:
        return [["resident memory a rank", "", f"{training / 2**30:.2f} GiB"]]
    rows = [["peak memory a rank", "", f"{training / 2**30:.2f} GiB"]]
    return rows + ([["… in evaluation", "", f"{evaluation / 2**30:.2f} GiB"]] if evaluation else [])


def _short(folder: Path) -> str:
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)
