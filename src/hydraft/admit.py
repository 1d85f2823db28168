"""Whether a run may begin, and what it will cost: every check and the plan, from a config that has been typed. No torch."""

from dataclasses import dataclass

from hydraft import checks, kernels, plan, prepare
from hydraft.choices import Mode
from hydraft.config import Config, ConfigError
from hydraft.data import sources
from hydraft.hardware import Hardware
from hydraft.models import shapes
from hydraft.plan import tokens


@dataclass(frozen=True)
class Admitted:
    """A run that may begin."""

    config: Config
    """With ``auto`` replaced, as far as the machine is known."""
    machine: Hardware | None
    """Of rank 0; None where it is not known yet."""
    plan: plan.Plan
    notes: list[str]
    """What a person may want to know, and need not change."""


def resolve(asked: Config, machine: Hardware | None) -> Config:
    """``asked`` with ``auto`` replaced, as far as that needs no records; a plan's for the machine that it plans for."""
    return plan.resolve(asked, plan.planned_for(asked, machine) if asked.mode is Mode.plan else machine)


def admit(asked: Config, machine: Hardware | None) -> Admitted:
    """Check a run and price it; nothing is loaded and nothing written.

    Raises:
        ConfigError: what a person has to change.
    """
    planned_for = plan.planned_for(asked, machine)
    config = resolve(asked, machine)
    checks.check(config, machine)
    family = (shapes.planned_config(config.model) or {}).get("model_type")
    if (refused := kernels.refusal(config, family)) is not None:
        raise ConfigError(refused)
    if not config.cluster.on_hosts:  # an agent asks this of its own host
        prepare.check(config.model)
    records = sources.training(config.data, config.seed)
    sources.held_out(config.data)
    text = tokens.measure(records, config.data)
    config = plan.settle(config, planned_for if asked.mode is Mode.plan else machine, text.longest_answer)
    whole = plan.resolve(config, planned_for)  # also where the machine of the run is not known yet
    whole = plan.settle(whole, planned_for, text.longest_answer)
    priced = plan.make_plan(whole, len(records), planned_for, text)
    return Admitted(config, machine, priced, kernels.slower(whole, family))
