"""What a family says of its published checkpoint: which tensors it has, of what shape, and what each becomes. No torch."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hydraft.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """A native tensor, taken from a published one."""

    name: str
    """Its native name."""
    rows: tuple[int, int] | None = None
    """Which rows of the published tensor it is, first and past the last; None for all of it."""
    unit_rows: bool = False
    """Whether each row is scaled to length 1 (in fp32, then cast back)."""


@dataclass(frozen=True)
class Rule:
    """What one published tensor has to be, and the native tensors it becomes (every row in exactly one of them)."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    def shape_of(self, part: Part) -> tuple[int, ...]:
        """The native tensor's shape."""
        return self.shape if part.rows is None else (part.rows[1] - part.rows[0], *self.shape[1:])


def whole(name: str, *shape: int) -> Rule:
    """A tensor that only changes its name."""
    return Rule(shape, (Part(name),))


def stacked(names: tuple[str, ...], heights: tuple[int, ...], *rest: int) -> Rule:
    """Tensors that are published as one, on top of each other: ``heights`` rows each, ``rest`` the other dimensions."""
    parts, start = [], 0
    for name, height in zip(names, heights, strict=True):
        parts.append(Part(name, (start, start + height)))
        start += height
    return Rule((start, *rest), tuple(parts))


def integer(config: Mapping[str, Any], key: str) -> int:
    """A size from a published config.

    Raises:
        ConfigError: it is not there, or is no positive whole number.
    """
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"config.json: {key} is {value!r}, where a positive whole number is needed")
    return value


def epsilon(config: Mapping[str, Any], key: str) -> float:
    """What RMSNorm adds to the mean square, from a published config.

    Raises:
        ConfigError: it is not there, or is not above 0.
    """
    value = config.get(key)
    if not isinstance(value, float) or not 0 < value < 1:
        raise ConfigError(f"config.json: {key} is {value!r}, where a number between 0 and 1 is needed")
    return value


def assign(
    rules: Mapping[str, Rule], dropped: re.Pattern[str], shapes: Iterable[tuple[str, str, tuple[int, ...]]]
) -> tuple[dict[str, list[str]], list[str]]:
    """Hold a checkpoint against what its family says of it.

    Args:
        rules: what has to be there.
        dropped: what may be there and is left out.
        shapes: what is there: file, tensor, shape.

    Returns:
        The used tensors of each file, in the file's order, and the dropped ones.

    Raises:
        ConfigError: a tensor is missing, there twice, of another shape, or one that nothing is known of.
    """
    used: dict[str, list[str]] = {}
    left_out: list[str] = []
    seen: dict[str, str] = {}
    for file, name, shape in shapes:
        if name in seen:
            raise ConfigError(f"{file}: {name} is in {seen[name]} too")
        seen[name] = file
        if name in rules:
            if shape != rules[name].shape:
                raise ConfigError(f"{file}: {name} is {shape}, but config.json makes it {rules[name].shape}")
            used.setdefault(file, []).append(name)
        elif dropped.fullmatch(name):
            left_out.append(name)
        else:
            raise ConfigError(f"{file}: {name} has no place in this family; is it another variant?")
    if missing := [name for name in rules if name not in seen]:
        raise ConfigError(f"{missing[0]} is in no weight file ({len(missing)} of {len(rules)} tensors are missing)")
    return used, left_out
