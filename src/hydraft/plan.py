"""What a run will do, before a GPU is touched: the batch arithmetic and the values ``auto`` stands for. No torch."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from hydraft.choices import Precision
from hydraft.config import Config
from hydraft.hardware import Hardware


@dataclass(frozen=True)
class Plan:
    """The arithmetic of a run."""

    records: int
    """Training records."""
    global_batch_size: int
    """Records an optimizer step: micro-batch x accumulation x ranks."""
    steps_per_epoch: int
    steps: int
    """Optimizer steps in all."""
    epochs: float
    """Passes over the records those steps make."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for plan.json."""
        return dataclasses.asdict(self)


def make_plan(config: Config, records: int) -> Plan:
    """Count the steps of ``config`` on ``records`` training records.

    The last batch of an epoch may be short; it counts as a step, its tokens weigh what they are.
    """
    steps_per_epoch = math.ceil(records / config.global_batch_size)
    steps = config.train.max_steps or math.ceil(steps_per_epoch * config.train.epochs)
    return Plan(records, config.global_batch_size, steps_per_epoch, steps, steps / steps_per_epoch)


def resolve(config: Config, hardware: Hardware) -> Config:
    """Replace each ``auto`` by what ``hardware`` calls for, so that the saved config says what ran."""
    precision = _precision(hardware) if config.train.precision is Precision.auto else config.train.precision
    dtype = precision if config.model.dtype is Precision.auto else config.model.dtype
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype=dtype),
        train=dataclasses.replace(config.train, precision=precision),
    )


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
    )


def show(config: Config, plan: Plan) -> None:
    """Print the head of a run: its line, and the batch arithmetic."""
    train = config.train
    ranks = f"{config.world_size} rank{'s' if config.world_size > 1 else ''}"
    print(headline(config))
    print(
        f"{plan.records:,} records · batch {train.micro_batch_size} x {train.gradient_accumulation_steps} "
        f"accumulated x {ranks} = {plan.global_batch_size} · {plan.steps:,} steps, {plan.epochs:.3g} epochs",
        flush=True,
    )
