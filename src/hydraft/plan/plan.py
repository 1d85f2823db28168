"""What a run will do and cost, before a GPU is touched: the batch arithmetic and the values ``auto`` stands for. No torch.

``tokens.py`` estimates the records, ``parameters.py`` counts the model, ``states.py`` and ``activations.py`` what training keeps
of it and ``scoring.py`` what scoring takes, ``memory.py`` adds that up, ``network.py`` and ``disk.py`` count what is sent and
written, ``search.py`` finds what to change, and ``show.py`` draws it.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from hydraft.config import rules
from hydraft.config.choices import Kernels, Precision
from hydraft.config.schema import Config
from hydraft.config.train import AUTO
from hydraft.models.loss import chunked
from hydraft.models.shapes import planned_config
from hydraft.plan import scoring
from hydraft.plan.disk import Disk, disk
from hydraft.plan.memory import WIDTH, Memory, Subject, memory
from hydraft.plan.network import Network, network
from hydraft.plan.parameters import Layout, layout, trained
from hydraft.plan.suggest import Change, apply, cheapest
from hydraft.plan.token_count import Text
from hydraft.system.hardware import Gpu, Hardware, detect, parse_memory

UNKNOWN_CARD = Gpu("a card", 0, 8.0)
"""Stands for cards that are not here and whose memory no one has said."""


RECOMPUTES = "train.gradient_checkpointing"


@dataclass(frozen=True)
class Cost:
    """What a run takes, for an architecture that the plan knows."""

    parameters: int
    trained: int
    targets: tuple[str, ...]
    """Names of the layers with an adapter, the last part of each; empty in full fine-tuning."""
    memory: Memory
    network: Network
    disk: Disk


@dataclass(frozen=True)
class Plan:
    """The arithmetic of a run, and its cost."""

    records: int
    """Training records."""
    global_batch_size: int
    """Records an optimizer step: micro-batch x accumulation x ranks."""
    steps_per_epoch: int
    steps: int
    """Optimizer steps in all."""
    epochs: float
    """Passes over the records those steps make."""
    tokens: int | None
    """Of an epoch, about: estimated from the records' characters."""
    labelled: int
    """The most trained tokens of a record, about."""
    gpu_memory: int | None
    """Bytes of a card that the run is held against, less what other processes have: 0 for a card of unknown size, None for a run
    on CPUs."""
    host_memory: int
    """Bytes of a machine's main memory, 0 where it is not this machine's."""
    cost: Cost | None
    """None for an architecture that the plan does not know."""
    without: int | None
    """Bytes that a card (on CPUs, a machine) would hold without recomputation, for a run that recomputes; else None."""
    fits: bool | None
    """Whether card and machine hold it; None where nothing is known to hold it against."""
    change: Change | None
    """The cheapest change that makes it fit, where it does not."""
    gpu_taken: int = 0
    """Bytes of that card that other processes have."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for plan.json."""
        return dataclasses.asdict(self)


def make_plan(config: Config, records: int, machine: Hardware | None = None, text: Text | None = None) -> Plan:
    """Count the steps of a resolved ``config`` on ``records`` training records, and what it costs on ``machine``.

    The last batch of an epoch may be short; it counts as a step, its tokens weigh what they are.

    Raises:
        ConfigError: the adapter's targets are not in the model.
    """
    machine = machine or detect()
    steps_per_epoch = math.ceil(records / config.global_batch_size)
    steps = config.train.max_steps or math.ceil(steps_per_epoch * config.train.epochs)
    known, stored = known_layout(config)
    cost, without, fits, change = None, None, None, None
    labelled = text.longest_answer if text else config.data.max_length
    if known is not None:
        subject = Subject(known, trained(known, config.lora), labelled, stored)
        cost = price(config, subject, machine)
        fits = holds(config, cost.memory, machine)
        if config.train.recomputes:
            kept = memory(apply(config, [(RECOMPUTES, False)]), subject, bool(machine.gpus))
            without = kept.peak if machine.gpus else kept.host_peak * config.cluster.ranks_per_node
        if fits is False:
            change = cheapest(
                config,
                machine,
                price=lambda changed: memory(changed, subject, bool(machine.gpus)),
                fits=lambda changed, cost: holds(changed, cost, machine) is True,
            )
    card = smallest(config, machine)
    return Plan(
        records, config.global_batch_size, steps_per_epoch, steps, steps / steps_per_epoch,
        text.tokens if text else None, labelled, None if card is None else card.available, machine.memory, cost, without, fits,
        change, 0 if card is None else card.taken,
    )  # fmt: skip


def price(config: Config, subject: Subject, machine: Hardware) -> Cost:
    """What a resolved ``config`` costs."""
    layout, learns = subject.layout, subject.learns
    names = tuple(dict.fromkeys(target.rpartition(".")[2] for target in learns.targets))
    return Cost(
        layout.count, learns.count, names, memory(config, subject, bool(machine.gpus)),
        network(config, layout, learns), disk(config, layout, learns),
    )  # fmt: skip


def holds(config: Config, cost: Memory, machine: Hardware) -> bool | None:
    """Whether each card and each machine has the memory; None where neither is known."""
    card, ranks = smallest(config, machine), config.cluster.ranks_per_node
    verdicts = []
    if card is not None and card.available:
        verdicts.append(cost.peak <= card.available)
    if machine.memory:
        shared = cost.peak if card is not None and card.unified else 0
        verdicts.append((cost.host_peak + shared) * ranks <= machine.memory)
    return all(verdicts) if verdicts else None


def smallest(config: Config, machine: Hardware) -> Gpu | None:
    """Of the cards that the ranks of a machine take, the one with the least memory to be had; None without cards."""
    taken = machine.gpus[: max(1, config.cluster.ranks_per_node)]
    return min(taken, key=lambda gpu: gpu.available, default=None)


def known_layout(config: Config) -> tuple[Layout | None, Precision]:
    """The parameters of the run's model as far as they are known without loading it, and what they are stored in.

    Raises:
        ConfigError: ``kernels.loss`` asks for what they cannot do.
    """
    native = planned_config(config.model) or {}
    if native:  # a refusal comes before anything is loaded
        chunked(config, str(native.get("model_type")), native.get("vocab_size", 0))
    name = str(native.get("dtype") or native.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return layout(native), {"float32": Precision.fp32, "float16": Precision.fp16}.get(name, Precision.bf16)


def answering_room(config: Config) -> scoring.Room | None:
    """What generating answers to the held-out records may take; None for an architecture that the plan does not know."""
    known, _ = known_layout(config)
    width = WIDTH[config.train.precision]
    return None if known is None else scoring.room(config, known, trained(known, config.lora), width)


def planned_for(config: Config, here: Hardware | None) -> Hardware:
    """The machine that a run is planned for: ``here``, or one with the cards that are asked for; None for one that is not known.

    Raises:
        ConfigError: ``cluster.gpu_memory`` is no size.
    """
    here = here or Hardware(gpus=(UNKNOWN_CARD,) * max(1, config.cluster.ranks_per_node))
    capability = min((gpu.compute_capability for gpu in here.gpus), default=UNKNOWN_CARD.compute_capability)
    if config.cluster.gpu_memory is not None:
        size = parse_memory(config.cluster.gpu_memory, "cluster.gpu_memory")
        cards = (Gpu(config.cluster.gpu_memory, size, capability),) * max(1, config.cluster.ranks_per_node)
        return dataclasses.replace(here, gpus=cards, memory=here.memory if here.gpus else 0)
    if not here.gpus and rules.refused_here(config, here):
        return dataclasses.replace(here, gpus=(UNKNOWN_CARD,) * max(1, config.cluster.ranks_per_node), memory=0)
    return here


def resolve(config: Config, hardware: Hardware | None) -> Config:
    """Replace each ``auto`` by what ``hardware`` calls for, so that the saved config says what ran; ``settle`` has the rest.

    Without ``hardware``, ``auto`` stays until the machine is known.
    """
    asked = config.train.precision
    precision = _precision(hardware) if asked is Precision.auto and hardware is not None else asked
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype=config.model.kept_in(precision)),
        train=dataclasses.replace(config.train, precision=precision),
    )


def settle(config: Config, hardware: Hardware | None, labelled: int) -> Config:
    """Replace ``train.gradient_checkpointing=auto`` of a resolved ``config``; without ``hardware`` it stays.

    It is on where the run does not fit without and fits with it. Where it fits neither way it is off: then the plan's
    ``change`` says what to do, and recomputation is among what it tries.

    Args:
        labelled: the most trained tokens of a record.

    Raises:
        ConfigError: the adapter's targets are not in the model.
    """
    if config.train.gradient_checkpointing != AUTO or hardware is None:
        return config
    off, on = (apply(config, [(RECOMPUTES, value)]) for value in (False, True))
    known, stored = known_layout(config)
    if known is None:
        return off
    subject = Subject(known, trained(known, config.lora), labelled, stored)
    fits = [holds(one, memory(one, subject, bool(hardware.gpus)), hardware) for one in (off, on)]
    return on if fits == [False, True] else off


def _precision(hardware: Hardware) -> Precision:
    if not hardware.gpus:
        return Precision.fp32
    return Precision.bf16 if all(gpu.compute_capability >= 8 for gpu in hardware.gpus) else Precision.fp16


def headline(config: Config) -> str:
    """A run in one line: what is trained how, where."""
    offload = "".join(
        f" +{part} on {place.value}"
        for part, place in (("optimizer", config.zero.offload_optimizer), ("weights", config.zero.offload_param))
        if place.value != "none"
    )
    method = config.lora.method.value
    trained = "full fine-tuning" if method == "none" else f"{method} r={config.lora.r}"
    return (
        f"{config.model.name} · quant {config.quant.kind.value} · {trained} · ZeRO-{config.zero.stage}{offload} · "
        f"{config.cluster.nodes}x{config.cluster.ranks_per_node} · {config.train.precision.value}"
        + (f" · {config.kernels.kind.value}" if config.kernels.kind is not Kernels.torch else "")
    )
