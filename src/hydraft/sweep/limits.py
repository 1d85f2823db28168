"""What limits a search: rungs at which candidates are pruned, and a budget of time. No torch."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hydraft.config import cli, duration
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.sweep import halving, pace
from hydraft.sweep.budget import Pace
from hydraft.sweep.candidate import Candidate
from hydraft.sweep.search_space import Space
from hydraft.system import hardware

UNLIMITED = 10**9
"""Trials of a search that a budget ends."""
HALVING, BUDGET = "hydra.sweeper.pruner", "sweep.budget"


@dataclass
class Limits:
    """Rungs and budget of a search."""

    settings: dict[str, Any]
    """Of the sweeper."""
    space: Space
    options: halving.Options
    launcher: str
    """The launcher's settings, as text: how many jobs run at once depends on them."""
    budget: float | None = None
    """Seconds; None for no limit."""
    first: int | None = None
    """The first rung; None if candidates are not pruned at rungs."""
    began: float = field(default_factory=time.monotonic)
    clock: Callable[[], float] = time.monotonic
    total: int = 0
    """Optimizer steps of a whole run, of the longest one."""
    steps: tuple[int, ...] = ()
    """The rungs."""
    known: list[Pace] = field(default_factory=list)
    """What fits the measured times of an earlier sweep; empty without one."""
    file: Any = None
    """Where they are kept."""

    @classmethod
    def of(cls, composed: DictConfig, space: Space, settings: dict[str, Any], streams: bool) -> "Limits | None":
        """The limits of a search with these settings; None if it has none.

        Args:
            composed: the config that its jobs share.
            space: what is searched.
            settings: of the sweeper.
            streams: whether the launcher takes one job after another while others run.

        Raises:
            ConfigError: they are not possible.
        """
        text, pruner = OmegaConf.select(composed, BUDGET), str(settings["pruner"])
        budget, halves = None if text is None else duration.seconds(str(text)), pruner in halving.KINDS
        if text is not None and budget is None:
            raise ConfigError(f"sweep.budget={text}: must be {duration.TEXT}, or null for no limit")
        if budget is None and not halves:
            return None
        if not streams:
            why = f"{HALVING}={pruner}" if halves else f"{BUDGET}={text}"
            raise ConfigError(f"{why}: needs a launcher that takes jobs while others run: use hydra/launcher=pool")
        if budget is not None and pruner == "hyperband":
            raise ConfigError(
                f"sweep.budget={text}: decides how many candidates reach each rung, and so does {HALVING}=hyperband: "
                f"use {HALVING}=successive_halving"
            )
        chosen = halving.options(pruner, settings["pruner_options"]) if halves else halving.Options()
        first = halving.first_rung(pruner, chosen, OmegaConf.select(composed, "train.eval_every")) if halves else None
        launcher = OmegaConf.to_container(OmegaConf.select(composed, "hydra.launcher"))
        return cls(settings, space, chosen, str(launcher), budget, first)

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        assert self.budget is not None
        return self.budget - (self.clock() - self.began)

    def plan(self, checked: Sequence[Candidate]) -> dict[str, Any]:
        """Set the rungs and the known times by candidates that have been planned; the settings of the search's ``Method``."""
        self.total = max(one.steps or 0 for one in checked)
        if self.first is not None:
            self.steps = halving.rungs(self.first, self.total, self.options.reduction_factor)
        settings = dict(self.settings)
        if self.budget is not None:
            composed = checked[0].composed
            assert composed is not None
            own = [str(key) for key in composed if key != "hydra"]
            config = cli.typed(OmegaConf.masked_copy(composed, own), Config)
            self.file = pace.file_of(config, self.space.axes, hardware.detect(), self.launcher)
            self.known = pace.load(self.file)
            settings["shuffle"] = True
            if settings["trials"] is None and settings["sampler"] != "grid":
                settings["trials"] = self._points() or UNLIMITED
        elif settings["pruner"] == "hyperband" and settings["trials"] is None and settings["sampler"] != "grid":
            settings["trials"] = halving.one_round(len(self.steps), self.options.reduction_factor)
        return settings

    def _points(self) -> int | None:
        """The number of points of the space; None if an axis is an interval."""
        try:
            values = self.space.grid().values()
        except ConfigError:
            return None
        count = 1
        for axis in values:
            count *= len(axis)
        return count

    def brackets(self, trials: int) -> list[tuple[float, int]]:
        """The brackets that are planned; with a budget, each takes the candidates for which there is time."""
        if self.budget is not None:
            return []
        return list(halving.sizes(self.settings["pruner"], trials, len(self.steps), self.options.reduction_factor))
