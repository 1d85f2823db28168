"""Whether a run may start and what it will cost: every check, and the plan, before anything is loaded. No torch."""

import dataclasses
from dataclasses import dataclass

from hydraft.config import rules, template
from hydraft.config.choices import Mode, QuantKind
from hydraft.config.schema import Config
from hydraft.data import held_out, mixture
from hydraft.data.records import Read
from hydraft.errors import ConfigError
from hydraft.models import batching, kernel_support, prepare, rope, row_documents, shapes, stored_quant
from hydraft.plan import micro_batch, plan, swap_space, token_count
from hydraft.system import files
from hydraft.system.hardware import Hardware


@dataclass(frozen=True)
class Resolved:
    """A config in which ``auto`` is replaced, as far as that needs no records."""

    config: Config
    machine: Hardware | None
    """Of rank 0; None if it is not known yet."""
    planned_for: Hardware
    """The machine that the plan is made for."""
    stored: str | None = None
    """What the checkpoint's own quantisation means for the run; None for an unquantised one."""

    @property
    def target(self) -> Hardware | None:
        """The machine whose hardware decides what ``auto`` means; None if it is not known yet."""
        return self.planned_for if self.config.mode is Mode.plan else self.machine


Measured = dict[str, tuple[mixture.TrainingRecords, token_count.Text]]
"""The records that were read for checks, and their measures, by the settings that they depend on."""

KEPT = 8
"""Most entries of a ``Measured``."""


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

    A checkpoint that is stored quantised decides the quant section.

    Raises:
        ConfigError: ``cluster.gpu_memory`` is not a size, or the checkpoint is stored in a quantisation that the run cannot have.
    """
    quant, stored = stored_quant.follow(config.model, config.quant)
    config = dataclasses.replace(config, quant=quant)
    found = Resolved(config, machine, plan.planned_for(config, machine))
    return Resolved(plan.resolve(config, found.target), machine, found.planned_for, stored)


def admit(resolved: Resolved, read: Read | None = None, known: Measured | None = None) -> Admitted:
    """Check a run and make its plan; nothing is loaded and nothing is written.

    Args:
        read: how the objective makes a record; by default that of supervised fine-tuning.
        known: of other jobs of a sweep, so that the same records are read once for all of them; new ones are added.

    Raises:
        ConfigError: names the setting to change.
    """
    config, planned_for = resolved.config, resolved.planned_for
    try:
        rules.check(config, resolved.machine)
    except ConfigError as error:
        if resolved.stored is None or config.quant.kind is QuantKind.none:
            raise
        raise ConfigError(f"{error} ({resolved.stored}; for another quant= use the unquantised checkpoint)") from None
    native = shapes.planned_config(config.model) or {}
    family = native.get("model_type")
    if (refused := kernel_support.refusal(config, family)) is not None:
        raise ConfigError(refused)
    config, notes = batching.settle(config, row_documents.config_reason(native))
    if not config.cluster.on_hosts:  # on other hosts, each agent checks its own
        prepare.check(config.model)
        if config.mode is Mode.train:
            files.check_cache()
            swap_space.check(config)
    records, text = _measured(config, read, {} if known is None else known)
    micro_batch.check(config.train.micro_batch_size, text.examples, estimated=True)
    config = plan.settle(config, resolved.target, text.longest_answer)
    priced = config
    if resolved.target is None:  # the plan needs values that the run's machine will decide
        priced = plan.settle(plan.resolve(config, planned_for), planned_for, text.longest_answer)
    return Admitted(
        config,
        resolved.machine,
        plan.make_plan(priced, len(records), planned_for, text),
        [
            *([resolved.stored] if resolved.stored else []),
            *kernel_support.slower(priced, family),
            *template.notes(config.data.template),
            *notes,
            *batching.shared_positions(config, native),
            *rope.notes(config.model, config.data.max_length, native),
            *_notes(records.mixture, config.mode),
        ],
    )


def _measured(config: Config, read: Read | None, known: Measured) -> tuple[mixture.TrainingRecords, token_count.Text]:
    """The training records and their measures; every record is read, so that a bad one is refused."""
    data = config.data
    seed = config.seed if data.mix or held_out.share(data) is not None else None
    key = repr((data, seed, config.objective, getattr(read, "__qualname__", read)))
    if key not in known:
        records = mixture.training(data, config.seed, read)
        text = token_count.measure(records, data)
        assert records.mixture.held_out is not None  # read here, so that a bad one is refused
        if len(known) >= KEPT:
            known.pop(next(iter(known)))
        known[key] = records, text
    return known[key]


def _notes(read: mixture.Mixture, mode: Mode) -> list[str]:
    """About the records; those about training records are kept with the encoded ones, and a run prints them from there."""
    return [*(read.notes if mode is Mode.plan else ()), *(read.held_out_notes if mode is not Mode.preview else ())]
