"""Plots the losses of a run. No torch."""

from io import BytesIO
from pathlib import Path
from typing import Any

from hydraft.system import files, line_file


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's ``metrics.jsonl``."""
    return line_file.read(folder / "metrics.jsonl").values


def draw_loss(folder: Path, title: str) -> Path:
    """Draw ``loss.png``: training loss, held-out loss and its lowest value, and the learning rate over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = read_metrics(folder)
    trained = [line for line in lines if "learning_rate" in line]  # null is a gap in the line
    held_out = [line for line in lines if line.get("eval_loss") is not None]
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    figure.subplots_adjust(left=0.09, right=0.87, bottom=0.11, top=0.92)  # a layout that is computed draws three times
    axes.plot([x["step"] for x in trained], [x["loss"] for x in trained], label="training loss")
    if held_out:
        steps, losses = [x["step"] for x in held_out], [x["eval_loss"] for x in held_out]
        axes.plot(steps, losses, "o-" if len(losses) > 2 else "o--", markersize=4, label="held-out loss")
        step, loss = min(zip(steps, losses, strict=True), key=lambda point: point[1])
        axes.plot(step, loss, "o", markersize=9, mfc="none", color="C1", label=f"lowest: {loss:.3f} at step {step:,}")
    axes.set(xlabel="optimizer step", ylabel="loss (nats a token)")
    axes.set_title(title, parse_math=False)  # a model's name may have a $ in it
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    rate = axes.twinx()
    rate.plot([x["step"] for x in trained], [x["learning_rate"] for x in trained], color="grey", alpha=0.5, lw=1)
    rate.set_ylabel("learning rate", color="grey")
    target = folder / "loss.png"
    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    pyplot.close(figure)
    files.write_bytes(target, drawn.getvalue())
    return target
