"""What a config would cost, as ``python train.py mode=plan`` shows it. No torch."""

import io
from dataclasses import dataclass, replace

from hydraft.api import overrides
from hydraft.config import rules
from hydraft.config.choices import Mode
from hydraft.config.schema import Config
from hydraft.launch import run as launch
from hydraft.launch.external import environment
from hydraft.plan import preflight, render
from hydraft.plan.plan import Cost, Plan, headline
from hydraft.runs import start
from hydraft.system.plain_console import PlainConsole
from hydraft.training.objectives.registry import make_objective

WIDTH = 110
"""Columns of a plan as text."""


@dataclass(frozen=True, repr=False)
class PlannedRun:
    """A plan, with what ``mode=plan`` prints beside it."""

    config: Config
    """With ``auto`` replaced."""
    plan: Plan
    """Records, steps, tokens, and what the run costs."""
    refused: list[str]
    """Why this machine or this version cannot run it."""
    notes: list[str]
    """Information that asks for no change."""

    @property
    def fits(self) -> bool | None:
        """Whether the run fits into memory; None if that is unknown."""
        return self.plan.fits

    @property
    def cost(self) -> Cost | None:
        """Parameters, memory, network, disk and start; None for an architecture that is not known."""
        return self.plan.cost

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.plan.steps

    @property
    def change(self) -> list[str]:
        """Overrides of the cheapest change that makes it fit; empty if it does, or if none was found."""
        return [] if self.plan.change is None else list(self.plan.change.overrides)

    def __repr__(self) -> str:
        return f"PlannedRun({headline(self.config)}: {self.steps:,} steps, {render.verdict(self.plan)})"

    def __str__(self) -> str:
        return self._printed(PlainConsole(file=io.StringIO(), width=WIDTH, force_terminal=False, force_jupyter=False))

    def _printed(self, console: PlainConsole) -> str:
        render.report(self.config, self.plan, self.refused, console)
        for note in self.notes:
            console.print(note, highlight=False, markup=False, soft_wrap=True)
        written = console.file
        assert isinstance(written, io.StringIO)
        return written.getvalue()

    def _repr_html_(self) -> str:
        """The same in colours, for a notebook."""
        console = PlainConsole(
            file=io.StringIO(),
            width=WIDTH,
            record=True,
            force_terminal=True,
            force_jupyter=False,
            color_system="truecolor",
        )
        self._printed(console)
        return console.export_html(inline_styles=True, code_format="<pre style='line-height:1.25'>{code}</pre>")


def plan(config: Config) -> PlannedRun:
    """Plan ``config`` for this machine, or for the one that ``cluster.gpu_memory`` describes; nothing is loaded, nothing is started.

    Raises:
        ConfigError: a setting has to be changed.
    """
    requested, started = start.settled(replace(overrides.checked(config), mode=Mode.plan), overrides.of(config))
    requested = environment.apply(requested, environment.detect(), False)
    machine = launch.machine(requested)
    objective = make_objective(requested.objective)
    objective.check(requested)
    admitted = preflight.admit(preflight.resolve(requested, machine), objective.read)
    found = admitted.config
    refused = rules.refused_here(found, machine) + launch.refused_here(found.cluster)
    return PlannedRun(replace(found, mode=Mode.train), admitted.plan, refused, [*started, *admitted.notes])
