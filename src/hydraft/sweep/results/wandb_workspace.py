"""A workspace page on wandb for a sweep: ``hydraft workspace multirun/… [entity]``.

Without an entity it prints the page as JSON, which needs no login and no network; with one it saves the page there.
"""

import sys
from pathlib import Path
from typing import Any

from hydraft.config import score
from hydraft.config.schema import load_config
from hydraft.errors import ConfigError
from hydraft.sweep.results import outcome
from hydraft.system import program
from hydraft.tracking import metadata


def build(folder: Path, entity: str = "") -> Any:
    """The page of the sweep in ``folder``: its runs by objective, settings and training curves.

    Raises:
        ConfigError: it is not a sweep with wandb runs, or the package is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as pages
    except ImportError:
        raise ConfigError(
            f"wandb's pages need a package that is not installed: {program.install('workspace')}"
        ) from None

    sweep = outcome.read(folder)
    run = next((one.folder for one in sweep.outcomes if one.config), None)
    if run is None:
        raise ConfigError(f"{folder}: no run has started in it")
    config = load_config(run / "config.yaml")
    settings = {axis.key: axis for axis in sweep.axes}
    columns = [
        panels.ParallelCoordinatesPlotColumn(metric=panels.Config(_setting(key)), log=axis.geometric)
        for key, axis in settings.items()
    ]
    objective = panels.SummaryMetric("objective")
    against = [
        panels.ScatterPlot(
            title=f"objective against {key}", x=panels.Config(_setting(key)), y=objective, log_x=axis.geometric
        )
        for key, axis in settings.items()
        if axis.numeric
    ]
    results = [
        panels.ParallelCoordinatesPlot(
            title="settings and objective", columns=[*columns, panels.ParallelCoordinatesPlotColumn(metric=objective)]
        ),
        panels.ParameterImportancePlot(with_respect_to="objective"),
        *against,
    ]
    order = pages.Ordering(item=pages.Summary("objective"), ascending=sweep.minimize[0])
    return pages.Workspace(
        entity=entity,
        project=config.tracker.project,
        name=f"sweep {sweep.name}",
        sections=[
            pages.Section(name="Settings and objective", panels=results, is_open=True),
            pages.Section(name="Training", panels=_training(panels, sweep), is_open=True),
        ],
        runset_settings=pages.RunsetSettings(order=[order], filters=f"Group == {metadata.group(config, run)!r}"),
    )


def _training(panels: Any, sweep: outcome.Sweep) -> list[Any]:
    """The charts of the steps; the scores of the task come first."""
    known = list(dict.fromkeys(name for one in sweep.outcomes for name in one.result.get("after") or {}))
    return [
        *(
            panels.LinePlot(title=name.replace("_", " "), x="Step", y=[f"eval/{name}"])
            for name in score.ordered(known)
            if name not in score.LOWER
        ),
        panels.LinePlot(title="training loss", x="Step", y=["train/loss"]),
        panels.LinePlot(title="learning rate", x="Step", y=["train/learning_rate"]),
        panels.LinePlot(title="training loss by tokens", x="train/tokens", y=["train/loss"]),
        panels.LinePlot(title="held-out loss by tokens", x="train/tokens", y=["eval/loss"]),
        panels.LinePlot(title="held-out loss", x="Step", y=["eval/loss"]),
        panels.LinePlot(title="gradient norm", x="Step", y=["train/grad_norm"]),
        panels.LinePlot(title="tokens per second", x="Step", y=["train/tokens_per_second"]),
        panels.LinePlot(title="memory of each rank (GiB)", x="Step", metric_regex="ranks/memory_gib .*"),
    ]


def spec(folder: Path) -> str:
    """The page as JSON, as wandb's server expects it."""
    return str(build(folder)._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2))


def _setting(key: str) -> str:
    """The setting of an axis in a run's config; for an option of a group, the setting that names it."""
    return {
        "zero": "zero.stage",
        "quant": "quant.kind",
        "lora": "lora.method",
        "model": "model.name",
        "data": "data.name",
    }.get(key, key)


def main(arguments: list[str]) -> int:
    """The exit code: 0, or 2 if no page can be made."""
    try:
        if len(arguments) not in (1, 2):
            raise ConfigError("needs a sweep's folder, and an entity to save the page there: multirun/… [entity]")
        if len(arguments) == 1:
            print(spec(Path(arguments[0])))
        else:
            print(build(Path(arguments[0]), arguments[1]).save().url)
    except ConfigError as error:
        print(f"hydraft workspace: {error}", file=sys.stderr)
        return 2
    return 0
