"""Whether a run may begin, and what it will cost: every check and the plan, from a config that has been typed. No torch."""

from dataclasses import dataclass

from hydraft.config import rules
from hydraft.config.choices import Mode
from hydraft.config.schema import Config
from hydraft.data import mixture
from hydraft.errors import ConfigError
from hydraft.models import kernel_support, prepare, shapes
from hydraft.plan import plan, token_count
from hydraft.system.hardware import Hardware


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
    rules.check(config, machine)
    family = (shapes.planned_config(config.model) or {}).get("model_type")
    if (refused := kernel_support.refusal(config, family)) is not None:
        raise ConfigError(refused)
    if not config.cluster.on_hosts:  # an agent asks this of its own host
        prepare.check(config.model)
    records = mixture.training(config.data, config.seed)
    mixture.held_out(config.data)
    text = token_count.measure(records, config.data)
    config = plan.settle(config, planned_for if asked.mode is Mode.plan else machine, text.longest_answer)
    whole = plan.resolve(config, planned_for)  # also where the machine of the run is not known yet
    whole = plan.settle(whole, planned_for, text.longest_answer)
    priced = plan.make_plan(whole, len(records), planned_for, text)
    return Admitted(config, machine, priced, kernel_support.slower(whole, family))
