"""Whether a run may start and what it will cost: every check, and the plan, before anything is loaded. No torch."""

from dataclasses import dataclass

from hydraft.config import rules
from hydraft.config.choices import Mode
from hydraft.config.schema import Config
from hydraft.data import mixture
from hydraft.data.formats import Read
from hydraft.errors import ConfigError
from hydraft.models import batching, kernel_support, prepare, row_documents, shapes
from hydraft.plan import plan, token_count
from hydraft.system.hardware import Hardware


@dataclass(frozen=True)
class Resolved:
    """A config in which ``auto`` is replaced, as far as that needs no records."""

    config: Config
    machine: Hardware | None
    """Of rank 0; None if it is not known yet."""
    planned_for: Hardware
    """The machine that the plan is made for."""

    @property
    def target(self) -> Hardware | None:
        """The machine whose hardware decides what ``auto`` means; None if it is not known yet."""
        return self.planned_for if self.config.mode is Mode.plan else self.machine


@dataclass(frozen=True)
class Admitted:
    """A run that may start."""

    config: Config
    """With ``auto`` replaced, as far as the machine is known."""
    machine: Hardware | None
    """Of rank 0; None if it is not known yet."""
    plan: plan.Plan
    notes: list[str]
    """Information that asks for no change."""


def resolve(config: Config, machine: Hardware | None) -> Resolved:
    """Replace ``auto``, as far as that needs no records; with ``mode=plan`` for the machine that is planned for.

    Raises:
        ConfigError: ``cluster.gpu_memory`` is not a size.
    """
    found = Resolved(config, machine, plan.planned_for(config, machine))
    return Resolved(plan.resolve(config, found.target), machine, found.planned_for)


def admit(resolved: Resolved, read: Read | None = None) -> Admitted:
    """Check a run and make its plan; nothing is loaded and nothing is written.

    Args:
        read: how the objective makes a record; by default that of supervised fine-tuning.

    Raises:
        ConfigError: names the setting to change.
    """
    config, planned_for = resolved.config, resolved.planned_for
    rules.check(config, resolved.machine)
    native = shapes.planned_config(config.model) or {}
    family = native.get("model_type")
    if (refused := kernel_support.refusal(config, family)) is not None:
        raise ConfigError(refused)
    config, notes = batching.settle(config, row_documents.config_reason(native))
    if not config.cluster.on_hosts:  # on other hosts, each agent checks its own
        prepare.check(config.model)
    records = mixture.training(config.data, config.seed, read)
    mixture.held_out(config.data, read)
    text = token_count.measure(records, config.data)
    config = plan.settle(config, resolved.target, text.longest_answer)
    priced = config
    if resolved.target is None:  # the plan needs values that the run's machine will decide
        priced = plan.settle(plan.resolve(config, planned_for), planned_for, text.longest_answer)
    return Admitted(
        config,
        resolved.machine,
        plan.make_plan(priced, len(records), planned_for, text),
        [*kernel_support.slower(priced, family), *notes, *batching.shared_positions(config, native)],
    )
