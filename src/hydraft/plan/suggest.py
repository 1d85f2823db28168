"""Finds the cheapest change of settings that makes a run fit. No torch.

Every combination of a few settings is estimated in three rounds: with the requested GPUs and record length, then with more GPUs,
then with shorter records. Of those that fit and break no rule, the one with the smallest product of slowdowns is chosen.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hydraft.config import rules
from hydraft.config.choices import Offload, QuantKind
from hydraft.config.schema import Config
from hydraft.models import kernel_support, stored_quant
from hydraft.plan.memory import Memory
from hydraft.system.hardware import Hardware

FACTORS = {
    "train.micro_batch_size": 1.1,  # per halving: smaller matrix products
    "train.gradient_checkpointing": 1.35,  # one more forward pass
    "quant.kind=nf4": 1.25,  # weights are dequantised in each pass
    "zero.stage": 1.02,
    "zero.stage=3": 1.4,  # weights are gathered in each pass
    "zero.offload_optimizer": 1.1,
    "zero.offload_param": 3.0,  # weights are copied to the GPU in each pass
    "data.max_length": 1.0,
    "cluster.ranks_per_node": 1.0,
}
"""Rough factors by which a step takes longer; only their order matters. int8 is not tried: nf4 is smaller and not slower."""

RANKS = (1, 2, 4, 8)
SHORTEST = 256
"""The smallest ``data.max_length`` that is tried."""

Price = Callable[[Config], Memory]
Fits = Callable[[Config, Memory], bool]
Setting = tuple[str, Any]


@dataclass(frozen=True)
class Change:
    """Overrides to add to the command."""

    overrides: tuple[str, ...]
    slowdown: float
    """The factor by which a step takes longer, roughly."""
    peak: int
    """Peak bytes per GPU with the change."""
    host_peak: int
    """Peak bytes of main memory per rank with the change."""


def cheapest(config: Config, machine: Hardware, price: Price, fits: Fits) -> Change | None:
    """The cheapest change for which ``fits`` is true of the memory from ``price``; None if there is none."""
    more_ranks = [ranks for ranks in RANKS if ranks > config.cluster.ranks_per_node]
    halvings = _halvings(config.data.max_length, SHORTEST)[1:]
    rounds: list[Iterable[list[Setting]]] = [
        [[]],
        [[("cluster.ranks_per_node", ranks)] for ranks in more_ranks],
        [[("data.max_length", length)] for length in halvings],
    ]
    for starts in rounds:
        for start in starts:
            tried = sorted(_candidates(config, start), key=lambda pair: pair[0])
            for slowdown, settings in tried:
                changed = apply(config, settings)
                refused = kernel_support.refusal(changed, None) or any(
                    rules.refusals(changed, machine, rules.COMBINATIONS)
                )
                if refused or not fits(changed, cost := price(changed)):
                    continue
                overrides = tuple(f"{name}={_typed(value)}" for name, value in settings)
                return Change(overrides, slowdown, cost.peak, cost.host_peak)
    return None


def apply(config: Config, settings: Iterable[Setting]) -> Config:
    """``config`` with dotted settings replaced."""
    for name, value in settings:
        group, _, key = name.partition(".")
        section = dataclasses.replace(getattr(config, group), **{key: value})
        config = dataclasses.replace(config, **{group: section})
    return config


def _candidates(config: Config, start: list[Setting]) -> Iterator[tuple[float, list[Setting]]]:
    """Every combination of values with its slowdown; the global batch size stays the same."""
    zero = config.zero
    stages = [stage for stage in range(4) if stage >= zero.stage]
    stored = stored_quant.stored(config.model)
    decided = stored is not None and stored.quant is not None  # by the checkpoint
    choices: dict[str, list[Any]] = {
        "train.micro_batch_size": _halvings(config.train.micro_batch_size, 1),
        "train.gradient_checkpointing": [config.train.gradient_checkpointing, True],
        "quant.kind": [config.quant.kind, *([] if decided else [QuantKind.nf4])],
        "zero.stage": stages,
        "zero.offload_optimizer": [zero.offload_optimizer, Offload.cpu],
        "zero.offload_param": [zero.offload_param, Offload.cpu],
    }
    started = apply(config, start)
    for values in itertools.product(*(dict.fromkeys(options) for options in choices.values())):
        settings = start + [
            (name, value) for name, value in zip(choices, values, strict=True) if value != _read(config, name)
        ]
        micro = values[0]
        passes, rest = divmod(config.global_batch_size, micro * started.world_size)
        if rest or passes == 0:
            continue
        if passes != config.train.gradient_accumulation_steps:
            settings.append(("train.gradient_accumulation_steps", passes))
        yield _slowdown(config, settings), settings


def _slowdown(config: Config, settings: list[Setting]) -> float:
    product = 1.0
    for name, value in settings:
        if name == "train.micro_batch_size":
            product *= FACTORS[name] ** ((config.train.micro_batch_size // value).bit_length() - 1)
        else:
            product *= FACTORS.get(f"{name}={_typed(value)}", FACTORS.get(name, 1.0))
    return product


def _halvings(value: int, least: int) -> list[int]:
    """``value``, half of it, and so on, down to ``least``."""
    found = [value]
    while found[-1] // 2 >= least:
        found.append(found[-1] // 2)
    return found


def _read(config: Config, name: str) -> Any:
    group, _, key = name.partition(".")
    return getattr(getattr(config, group), key)


def _typed(value: Any) -> str:
    """A value in the syntax of the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(getattr(value, "value", value))
