"""The rules of a published layout: its tensors, their shapes, and the native tensors that they become. No torch."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hydraft.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """A native tensor that is a part of a published one."""

    name: str
    """Its native name."""
    rows: tuple[int, int] | None = None
    """Its rows in the published tensor (in each of its ``groups``), as a half-open range; None for all of them."""
    groups: int = 1
    """Equal blocks of rows that the published tensor consists of; ``rows`` are taken from each."""
    unit_rows: bool = False
    """Whether each row is scaled to length 1, in fp32, and stored in fp32: in 16 bits the lengths would be off by up to 1e-3."""


@dataclass(frozen=True)
class Rule:
    """The shape of a published tensor, and the native tensors that it becomes (every row in exactly one of them)."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    def shape_of(self, part: Part) -> tuple[int, ...]:
        """The native tensor's shape."""
        return self.shape if part.rows is None else (part.groups * (part.rows[1] - part.rows[0]), *self.shape[1:])


def whole(name: str, *shape: int) -> Rule:
    """A tensor that is only renamed."""
    return Rule(shape, (Part(name),))


def stacked(names: tuple[str, ...], heights: tuple[int, ...], *rest: int, groups: int = 1) -> Rule:
    """Tensors that are published stacked along the first dimension: ``heights`` rows each, ``rest`` the other dimensions.

    ``groups``: so many such stacks follow each other, each with ``heights`` rows of every tensor.
    """
    parts, start = [], 0
    for name, height in zip(names, heights, strict=True):
        parts.append(Part(name, (start, start + height), groups))
        start += height
    return Rule((groups * start, *rest), tuple(parts))


def integer(config: Mapping[str, Any], key: str) -> int:
    """A size from a published config.

    Raises:
        ConfigError: it is missing, or not a positive integer.
    """
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"config.json: {key} is {value!r}, where a positive integer is required")
    return value


def epsilon(config: Mapping[str, Any], key: str) -> float:
    """The epsilon of RMSNorm, from a published config.

    Raises:
        ConfigError: it is missing, or not between 0 and 1.
    """
    value = config.get(key)
    if not isinstance(value, float) or not 0 < value < 1:
        raise ConfigError(f"config.json: {key} is {value!r}, where a number between 0 and 1 is required")
    return value


def assign(
    rules: Mapping[str, Rule], dropped: re.Pattern[str], shapes: Iterable[tuple[str, str, tuple[int, ...]]]
) -> tuple[dict[str, list[str]], list[str]]:
    """Check the tensors of a checkpoint against the rules of its family.

    Args:
        rules: the required tensors.
        dropped: names of tensors that may be present and are left out.
        shapes: the present tensors: file, name, shape.

    Returns:
        The used tensors of each file, in the file's order, and the dropped ones.

    Raises:
        ConfigError: a tensor is missing, duplicate, of another shape, or unknown.
    """
    used: dict[str, list[str]] = {}
    left_out: list[str] = []
    seen: dict[str, str] = {}
    for file, name, shape in shapes:
        if name in seen:
            raise ConfigError(f"{file}: {name} is also in {seen[name]}")
        seen[name] = file
        if name in rules:
            if shape != rules[name].shape:
                raise ConfigError(f"{file}: {name} has shape {shape}, where config.json requires {rules[name].shape}")
            used.setdefault(file, []).append(name)
        elif dropped.fullmatch(name):
            left_out.append(name)
        else:
            raise ConfigError(f"{file}: {name} is unknown in this family; is it another variant?")
    if missing := [name for name in rules if name not in seen]:
        raise ConfigError(f"{missing[0]} is in no weight file ({len(missing)} of {len(rules)} tensors are missing)")
    return used, left_out
