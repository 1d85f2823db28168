"""The results of a run: result.json, the loss plot, the summary on the dashboard, and the final table in the terminal."""

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from hydraft.config import printed
from hydraft.config.schema import Config
from hydraft.config.score import BENCHMARK
from hydraft.evaluation import answers
from hydraft.evaluation.metrics import shown
from hydraft.plan import plan
from hydraft.runs import loss_plot
from hydraft.system import files
from hydraft.system.console import Screen
from hydraft.system.escaping import escaped
from hydraft.tracking.base import Tracker
from hydraft.training.flop_rate import RATE, SHARE

COLUMNS = ["prompt", "reference", "before", "after"]
"""Of the table of answers."""

SUMMARY = ("train_loss", "tokens", "train_seconds", "peak_memory_bytes", "trained_parameters")
"""Values of result.json that are also sent to the dashboard."""


def write_result(config: Config, folder: Path, result: dict[str, Any], trained: Path, tracker: Tracker) -> None:
    """Write result.json and the loss plot, and finish the run on the dashboard. ``trained``: the saved adapter or model."""
    files.write_json(folder / "result.json", result)
    loss_plot.draw_loss(folder, plan.headline(config))
    if shown := answers.before_and_after(folder, config.train.show_answers):
        tracker.table("answers", COLUMNS, [_cells(pair) for pair in shown])
    if config.tracker.upload:
        tracker.upload(trained)
    scores = {f"{when}/{name}": value for when in ("before", "best", "after") for name, value in result[when].items()}
    scores |= {f"kept/{name}": value for name, value in result.get("kept", {}).items() if name != "best_by"}
    scores |= {f"ended_early/{name}": value for name, value in result.get("ended_early", {}).items()}
    first = {
        f"after/{name}": value for name, value in result["after"].items()
    }  # the task's own score is the first of them
    tracker.finish(
        {
            **first,
            "objective": result["objective"],
            **scores,
            **{name: result[name] for name in (*SUMMARY, RATE, SHARE) if name in result},
            "tokens_per_second": result["tokens"] / max(result["train_seconds"], 1e-9),
        }
    )


def show_result(screen: Screen, folder: Path, result: dict[str, Any], seconds: float, tracker: Tracker) -> None:
    """Print the final table, and a command that tries the result."""
    before, after = result["before"], result["after"]
    rows = [
        [_label(name), shown(name, before[name]) if name in before else "", shown(name, after[name])] for name in after
    ]
    best, kept, ended = result["best"], result.get("kept"), result.get("ended_early")
    if kept is None and "loss" in after and best.get("step") not in (None, 0, result["steps"]):
        rows.insert(list(after).index("loss") + 1, [f"best, at step {best['step']:,}", "", shown("loss", best["loss"])])
    if kept is not None:
        rows.append(["weights that are kept", "", f"step {kept['step']:,}"])
    speed = result["tokens"] / result["train_seconds"]
    rows += [
        *([["started from", result["start"], ""]] if "start" in result else []),
        ["training loss", "", f"{result['train_loss']:.3f}"],
        ["steps", "", f"{result['steps']:,}" + ("" if ended is None else f" of {ended['of']:,}, ended early")],
        ["tokens/s", "", f"{speed:,.0f}"],
        *_operations(result),
        *_peaks(result),
        ["trained parameters", "", f"{result['trained_parameters']:,}"],
        ["time", "", f"{seconds:.0f} s"],
    ]
    screen.progress.stop()
    screen.table(str(folder), ["", "before", "after"], rows)
    screen.say(f'try it: {printed.command("infer", printed.override("run", _short(folder)))} prompt="…"')
    show_upload(screen, tracker)


def show_upload(screen: Screen, tracker: Tracker) -> None:
    """Print the command that uploads an offline run of a dashboard, if this is one."""
    if tracker.upload_command:
        screen.say(f"the dashboard's files are on this machine; to upload them: {tracker.upload_command}")


def _label(name: str) -> str:
    return name.replace("/", " ") if name.startswith(BENCHMARK) else f"held-out {name.replace('_', ' ')}"


def show_answers(screen: Screen, folder: Path, count: int) -> None:
    """Print the answers to the first ``count`` held-out records before and after training."""
    found = answers.before_and_after(folder, count)
    if not found:
        if count:
            screen.say(
                f"train.show_answers={count}: there are no answers to held-out records from before and after training"
            )
        return
    table = Table(title=f"the first {len(found)} answers", title_justify="left", show_lines=True)
    for name in COLUMNS:
        table.add_column(name, overflow="fold")
    for pair in found:
        table.add_row(*(Text("\n".join(map(escaped, cell.split("\n")))) for cell in _cells(pair)))
    screen.console.print(table)


def _cells(pair: answers.Pair) -> list[str]:
    """The cells of ``COLUMNS``; an answer is marked as right or wrong."""
    marked = [f"{'✓' if one.is_right else '✗'} {one.answer}" for one in (pair.first, pair.second)]
    return [pair.first.prompt, pair.first.reference, *marked]


def _operations(result: dict[str, Any]) -> list[list[str]]:
    """A row of operations a second on a GPU, with their share of the card's peak if that is known."""
    if RATE not in result:
        return []
    share = f", MFU {result[SHARE]:.1%}" if SHARE in result else ""
    return [["TFLOP/s a GPU", "", f"{result[RATE]:,.1f}{share}"]]


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
