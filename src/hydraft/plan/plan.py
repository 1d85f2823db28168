"""Plans a run without a GPU: the batch arithmetic, the resolved ``auto`` settings, memory, network and disk. No torch.

``token_count.py`` estimates the records, ``parameters.py`` counts the model, ``optimizer_states.py``, ``activations.py`` and
``scoring.py`` estimate the memory of training and evaluation, ``gathered.py`` that of weights that ZeRO-3 gathers, ``loading.py`` that of
the start, ``memory.py`` adds it up, ``flops.py`` counts operations,
``startup.py``, ``network.py`` and ``disk.py`` what is read, sent and written, ``suggest.py`` finds what to change, and ``render.py`` prints the plan.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from hydraft.config import rules
from hydraft.config.choices import Kernels, Precision
from hydraft.config.debug import DebugKind
from hydraft.config.lora import start_name
from hydraft.config.objective import ObjectiveKind
from hydraft.config.schema import Config
from hydraft.config.train import AUTO
from hydraft.models.loss import chunked
from hydraft.models.shapes import planned_config
from hydraft.plan import scoring
from hydraft.plan.disk import Disk, disk
from hydraft.plan.flops import Tokens, operations
from hydraft.plan.memory import Memory, memory
from hydraft.plan.model_size import ModelSize
from hydraft.plan.network import Network, network
from hydraft.plan.parameters import Layout, layout, trained_in
from hydraft.plan.startup import Startup, startup
from hydraft.plan.suggest import Change, apply, cheapest
from hydraft.plan.token_count import Text
from hydraft.plan.weights import WIDTH
from hydraft.system.hardware import Gpu, Hardware, detect, parse_memory

UNKNOWN_GPU = Gpu("a card", 0, 8.0)
"""A GPU of another machine, of unknown memory."""


RECOMPUTES = "train.gradient_checkpointing"


@dataclass(frozen=True)
class Cost:
    """The cost of a run whose architecture has a ``Family``."""

    parameters: int
    active: int
    """Parameters that compute a token: of a mixture of experts, those that it is routed to."""
    trained: int
    targets: tuple[str, ...]
    """Names of the layers with an adapter, the last part of each; empty for full fine-tuning."""
    memory: Memory
    network: Network
    disk: Disk
    startup: Startup


@dataclass(frozen=True)
class Plan:
    """The batch arithmetic of a run, and its cost."""

    records: int
    """Training records."""
    global_batch_size: int
    """Records per optimizer step: micro-batch x accumulation x ranks."""
    steps_per_epoch: int
    steps: int
    """Optimizer steps of the run."""
    epochs: float
    """Passes over the records in these steps."""
    tokens: int | None
    """Tokens of an epoch, estimated from the records' characters."""
    labelled: int
    """The most trained tokens of a record, estimated."""
    gpu_memory: int | None
    """Available bytes of the GPU that the run is planned for, without those that other processes use: 0 for a GPU of unknown size,
    None for a run on CPUs."""
    host_memory: int
    """Bytes of a machine's main memory; 0 for another machine."""
    cost: Cost | None
    """None for an architecture without a ``Family``."""
    without: int | None
    """Peak bytes per GPU (on CPUs, per machine) without recomputation, for a run that recomputes; else None."""
    fits: bool | None
    """Whether the run fits GPU and machine; None if their memory is unknown."""
    change: Change | None
    """The cheapest change that makes the run fit, if it does not."""
    gpu_taken: int = 0
    """Bytes of that GPU that other processes use."""
    flops: int | None = None
    """At most: floating-point operations of an optimizer step, on all ranks; None if the tokens or the architecture are not known."""

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values, for plan.json."""
        return dataclasses.asdict(self)


def make_plan(config: Config, records: int, machine: Hardware | None = None, text: Text | None = None) -> Plan:
    """Plan a resolved ``config`` with ``records`` training records on ``machine``.

    The last batch of an epoch may be short; it counts as a step, and its loss is averaged over its tokens.

    Raises:
        ConfigError: the adapter's targets are not in the model.
    """
    machine = machine or detect()
    examples, tokens = max(records, text.examples if text else 0), text.tokens if text else None
    if config.debug.kind is DebugKind.overfit and examples > config.global_batch_size:  # one batch is an epoch
        tokens = None if tokens is None else tokens * config.global_batch_size // examples
        records = examples = config.global_batch_size
    steps_per_epoch = math.ceil(examples / config.global_batch_size)
    steps = config.train.max_steps or math.ceil(steps_per_epoch * config.train.epochs)
    known, stored = known_layout(config)
    cost, without, fits, change, flops = None, None, None, None, None
    labelled = text.longest_answer if text else config.data.max_length
    if known is not None:
        subject = ModelSize(known, trained_in(known, config), labelled, stored)
        cost = price(config, subject, machine)
        if tokens:
            flops = step_operations(config, subject, tokens / steps_per_epoch, tokens / examples)
        fits = fits_memory(config, cost.memory, machine)
        if config.train.recomputes:
            kept = memory(apply(config, [(RECOMPUTES, False)]), subject, bool(machine.gpus))
            without = kept.peak if machine.gpus else kept.host_peak * config.cluster.ranks_here
        if fits is False:
            change = cheapest(
                config,
                machine,
                price=lambda changed: memory(changed, subject, bool(machine.gpus)),
                fits=lambda changed, cost: fits_memory(changed, cost, machine) is True,
            )
    gpu = smallest_gpu(config, machine)
    return Plan(
        records, config.global_batch_size, steps_per_epoch, steps, steps / steps_per_epoch,
        tokens, labelled, None if gpu is None else gpu.available, machine.memory, cost,
        without, fits,
        change, 0 if gpu is None else gpu.taken,
        flops,
    )  # fmt: skip


def price(config: Config, subject: ModelSize, machine: Hardware) -> Cost:
    """The cost of a resolved ``config``."""
    layout, learns = subject.layout, subject.learns
    names = tuple(dict.fromkeys(target.rpartition(".")[2] for target in learns.targets))
    written, cpus = disk(config, layout, learns), None if machine.gpus else machine.cpus
    return Cost(
        layout.count, layout.active, learns.count, names, memory(config, subject, bool(machine.gpus)),
        network(config, layout, learns), written, startup(config, subject, cpus, written.quantised > 0),
    )  # fmt: skip


def step_operations(config: Config, subject: ModelSize, tokens: float, length: float) -> int:
    """Floating-point operations of a step of ``tokens`` tokens in sequences of ``length``, if each token has a loss."""
    sizes = Tokens(tokens, tokens, tokens * length)
    return round(operations(config, subject.layout, subject.learns, sizes))


def fits_memory(config: Config, cost: Memory, machine: Hardware) -> bool | None:
    """Whether each GPU and each machine has enough memory; None if neither is known."""
    gpu, ranks = smallest_gpu(config, machine), config.cluster.ranks_here
    verdicts = []
    if gpu is not None and gpu.available:
        verdicts.append(cost.peak <= gpu.available)
    if machine.memory:
        shared = cost.peak if gpu is not None and gpu.unified else 0
        verdicts.append((cost.host_peak + shared) * ranks <= machine.memory)
    return all(verdicts) if verdicts else None


def smallest_gpu(config: Config, machine: Hardware) -> Gpu | None:
    """The GPU with the least available memory among those that a machine's ranks use; None without GPUs."""
    taken = machine.gpus[: max(1, config.cluster.ranks_here)]
    return min(taken, key=lambda gpu: gpu.available, default=None)


def known_layout(config: Config) -> tuple[Layout | None, Precision]:
    """The parameters of the run's model, if known without loading it, and the data type of its checkpoint.

    Raises:
        ConfigError: ``kernels.loss=chunked`` is not supported for this architecture.
    """
    native = planned_config(config.model) or {}
    if native:  # to refuse the setting before anything is loaded
        chunked(config, str(native.get("model_type")), native.get("vocab_size", 0))
    name = str(native.get("dtype") or native.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    return layout(native), {"float32": Precision.fp32, "float16": Precision.fp16}.get(name, Precision.bf16)


def generation_memory(config: Config) -> scoring.GenerationMemory | None:
    """The memory for generating answers to held-out records; None for an architecture without a ``Family``."""
    known, _ = known_layout(config)
    width = WIDTH[config.train.precision]
    return None if known is None else scoring.generation_memory(config, known, trained_in(known, config), width)


def planned_for(config: Config, here: Hardware | None) -> Hardware:
    """The machine that a run is planned for: ``here``, or one with the requested GPUs.

    Raises:
        ConfigError: ``cluster.gpu_memory`` is not a size.
    """
    here = here or Hardware(gpus=(UNKNOWN_GPU,) * max(1, config.cluster.ranks_here))
    capability = min((gpu.compute_capability for gpu in here.gpus), default=UNKNOWN_GPU.compute_capability)
    if config.cluster.gpu_memory is not None:
        size = parse_memory(config.cluster.gpu_memory, "cluster.gpu_memory")
        gpus = (Gpu(config.cluster.gpu_memory, size, capability),) * max(1, config.cluster.ranks_here)
        return dataclasses.replace(here, gpus=gpus, memory=here.memory if here.gpus else 0)
    if not here.gpus and rules.refused_here(config, here):
        return dataclasses.replace(here, gpus=(UNKNOWN_GPU,) * max(1, config.cluster.ranks_here), memory=0)
    return here


def resolve(config: Config, hardware: Hardware | None) -> Config:
    """Replace each ``auto`` that depends on ``hardware`` only, so that the saved config has the values of the run.

    Without ``hardware``, ``auto`` stays until the machine is known. ``settle`` resolves the others.
    """
    precision = config.train.precision
    if precision is Precision.auto and hardware is not None:
        precision = _precision(hardware)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype=config.model.kept_in(precision)),
        train=dataclasses.replace(config.train, precision=precision),
    )


def settle(config: Config, hardware: Hardware | None, labelled: int) -> Config:
    """Replace ``train.gradient_checkpointing=auto`` of a resolved ``config``; without ``hardware`` it stays.

    It is on if the run fits only with it. If the run fits neither way it is off: then the plan's ``change``, whose candidates
    include recomputation, shows what to do.

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
    subject = ModelSize(known, trained_in(known, config), labelled, stored)
    fits = [fits_memory(one, memory(one, subject, bool(hardware.gpus)), hardware) for one in (off, on)]
    return on if fits == [False, True] else off


def _precision(hardware: Hardware) -> Precision:
    if not hardware.gpus:
        return Precision.fp32
    return Precision.bf16 if all(gpu.compute_capability >= 8 for gpu in hardware.gpus) else Precision.fp16


def headline(config: Config) -> str:
    """A run in one line: model, quantisation, method, ZeRO, ranks and precision."""
    offload = "".join(
        f" +{part} on {place.value}"
        for part, place in (("optimizer", config.zero.offload_optimizer), ("weights", config.zero.offload_param))
        if place.value != "none"
    )
    method = config.lora.method.value
    trained = "full fine-tuning" if method == "none" else f"{method} r={config.lora.r}"
    if config.lora.start is not None:
        trained += f" from {start_name(config.lora.start)}"
    if config.objective.kind is not ObjectiveKind.sft:
        trained = f"{config.objective.kind.value} · {trained}"
    return (
        (f"debug={config.debug.name} · " if config.debug.on else "")
        + f"{config.model.name} · quant {config.quant.kind.value} · {trained} · ZeRO-{config.zero.stage}{offload} · "
        f"{config.cluster.nodes}x{config.cluster.ranks_per_node} · {config.train.precision.value}"
        + (f" · {config.kernels.kind.value}" if config.kernels.kind is not Kernels.torch else "")
    )
