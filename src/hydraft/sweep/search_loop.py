"""Runs a search: takes jobs from it, runs them with a launcher, reports their results, and stops those that are pruned. No torch."""

import sys
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution

from hydraft.config import cli, printed
from hydraft.errors import EXIT_REFUSED, ConfigError, RunFailed
from hydraft.plan.pack import largest
from hydraft.sweep import decide, holder, limits, replicas
from hydraft.sweep.candidate import Candidate, refusal
from hydraft.sweep.results.live_table import Live
from hydraft.sweep.rung_jobs import RungJobs
from hydraft.sweep.search_jobs import Jobs
from hydraft.sweep.search_space import Space, Value, make_space
from hydraft.sweep.session import Session
from hydraft.sweep.slots import Demand
from hydraft.sweep.study import Method, Search

POLL_SECONDS = 0.2
"""Between two checks for new evaluations of running jobs."""


def run(session: Session, launcher: Launcher, settings: dict[str, Any], arguments: list[str]) -> list[Any]:
    """Search the space of ``settings`` and ``arguments`` with jobs of ``launcher``.

    Returns:
        The best trials.

    Raises:
        ConfigError: the settings of the search are wrong.
        RunFailed: some jobs cannot run, and ``sweep.skip_invalid`` is not set; none was started.
    """
    config, loader = session.config, session.context.config_loader
    typed = [*cli.params(settings.pop("params")), *arguments]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(typed)
    plain = [override.input_line or "" for override in overrides if not override.is_sweep_override()]
    composed = loader.load_sweep_config(config, plain)
    if settings["pruner"] != "none" and OmegaConf.select(composed, "train.eval_every") is None:
        raise ConfigError(
            f"hydra.sweeper.pruner={settings['pruner']}: jobs are not evaluated during training: add train.eval_every=epoch, or a number of steps"
        )
    space = make_space(overrides, composed)
    replicas.check(config, list(space.axes))
    streams = hasattr(launcher, "stream")
    settings["seed"] = int(OmegaConf.select(composed, "seed", default=42))
    paced = limits.Limits.of(composed, space, settings, streams)
    if paced is not None and config.sweep.replicas > 1:
        raise ConfigError(
            f"sweep.replicas={config.sweep.replicas}: a search with rungs or with sweep.budget runs each point once: run its best "
            "points with several seeds afterwards"
        )
    demand, checked = _check(session, space)
    method = Method(**(settings if paced is None else paced.plan(checked)))
    search = Search(session.folder, space, list(config.sweep.objective), method)
    jobs = Jobs(session, search) if paced is None else RungJobs(session, search, limits=paced)
    jobs.checked = {tuple(one.overrides): one for one in checked}
    session.add([])  # claims the folder
    try:
        with Live(session.folder, lines=not streams), holder.named(session.folder), jobs:
            if streams:
                launcher.stream(jobs, demand, POLL_SECONDS)
            else:
                jobs.one_by_one(launcher)
    except BaseException:
        again = printed.override("sweep.resume", session.name)
        print(f"to resume it, add {again} to the same command", file=sys.stderr)
        raise
    session.here = {key: job for key, job in session.ledger.jobs().items() if key not in jobs.left_out}
    if config.sweep.decide:
        decide.run(session, launcher)
        session.here = session.ledger.jobs()
    return search.best()


def _check(session: Session, space: Space) -> tuple[Demand, list[Candidate]]:
    """Check and plan a job at both ends of every axis, with the first value of the other axes.

    Returns:
        The largest demand of these jobs, and those that can run.

    Raises:
        RunFailed: one of them cannot run.
    """
    ends = {key: _ends(axis) for key, axis in space.axes.items()}
    first = {key: values[0] for key, values in ends.items()}
    trials = [{**first, key: value} for key, values in ends.items() for value in values]
    candidates = [session.candidate(space.overrides(values)) for values in trials]
    refused = [one for one in candidates if one.refused]
    if refused and (len(refused) == len(candidates) or not session.config.sweep.skip_invalid):
        raise RunFailed(refusal(candidates), EXIT_REFUSED)
    checked = [one for one in candidates if not one.refused]
    demands = [one.demand for one in checked]
    shared = [demand.shared for demand in demands if demand.shared is not None]
    whole = Demand(
        max(demand.ranks for demand in demands),
        max(demand.memory for demand in demands),
        any(demand.alone for demand in demands),
        shared=largest(shared) if shared else None,
    )
    return whole, checked


def _ends(axis: Any) -> list[Value]:
    return (
        [str(choice) for choice in axis.choices] if isinstance(axis, CategoricalDistribution) else [axis.low, axis.high]
    )
