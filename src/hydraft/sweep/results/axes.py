"""The axes of a sweep: the settings that differ between its jobs, and their values. No torch."""

import itertools
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import OmegaConf

from hydraft.config import moved
from hydraft.config.setting_kind import Kind, kind_of
from hydraft.config.split_text import unquoted

GROUPS = ("model", "quant", "lora", "zero", "cluster", "data", "tracker")
"""Config groups: one override, such as ``zero=stage2_offload``, changes several settings of the section."""

NEVER = ("mode", "resume", "sweep", "tracker", "model.sizes", "model.path")
"""Settings that do not affect a job's result."""


PLAIN = re.compile(r"(?:0|-?[1-9]\d{0,15})(?:\.\d+)?(?:e-?\d{1,2})?")
"""Numbers that YAML reads as Python does; reading them as YAML takes a hundred times longer."""


@dataclass(frozen=True)
class Axis:
    """A setting that differs between jobs, and its values."""

    key: str
    """The override: ``train.learning_rate``, or ``zero`` for an option of a group."""
    values: tuple[Any, ...]
    """Every value once; numbers in ascending order, others in the order of the jobs."""

    @cached_property
    def numeric(self) -> bool:
        """Whether every value is a number."""
        return all(
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            for value in self.values
        )

    @cached_property
    def positions(self) -> dict[str, int]:
        """The position of each value in ``values``, by its text."""
        found: dict[str, int] = {}
        for position, value in enumerate(self.values):
            found.setdefault(str(value), position)
        return found

    @cached_property
    def geometric(self) -> bool:
        """Whether the values are spaced more evenly on a logarithmic scale: 1e-4, 1e-3, 1e-2."""
        if not self.numeric or len(self.values) < 2 or min(self.values) <= 0:
            return False
        if len(self.values) == 2:
            return bool(max(self.values) >= 4 * min(self.values))
        return _spread([math.log(value) for value in self.values]) < _spread(self.values)

    @property
    def label(self) -> str:
        """The key, shortened for the head of a table."""
        return self.key if len(self.key) <= 12 else self.key.rpartition(".")[2]


def _spread(values: Sequence[float]) -> float:
    """How uneven the gaps between sorted values are: 0 if all are equal."""
    gaps = [b - a for a, b in itertools.pairwise(values)]
    return statistics.pstdev(gaps) / statistics.fmean(gaps)


def of_overrides(keys: Iterable[str], jobs: Sequence[dict[str, Any]]) -> list[Axis]:
    """The axes of those ``keys`` whose values differ; ``jobs`` has each job's values by key."""
    found = [Axis(key, _ordered(job.get(key) for job in jobs)) for key in keys]
    return [axis for axis in found if len(axis.values) > 1]


def of_configs(configs: Sequence[dict[str, Any]]) -> list[Axis]:
    """The axes of jobs of which only the configs are known.

    Settings of one section that always change together are one axis, named by the first of them: the override
    ``zero=stage2_offload`` changes two settings.
    """
    found: list[Axis] = []
    columns: dict[str, list[tuple[Any, ...]]] = {}
    for key in dict.fromkeys(key for config in configs for key in config):
        section = key.partition(".")[0]
        if any(key == name or key.startswith(f"{name}.") for name in NEVER):
            continue
        column = tuple(config.get(key) for config in configs)
        axis = Axis(key, _ordered(column))
        if len(axis.values) < 2:
            continue
        known = columns.setdefault(section, [])
        if section in GROUPS and any(_change_together(column, other) for other in known):
            continue
        known.append(column)
        found.append(axis)
    return found


def _change_together(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Whether each value of one column always occurs with the same value of the other."""
    pairs = {(str(a), str(b)) for a, b in zip(one, other, strict=True)}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def _ordered(values: Iterable[Any]) -> tuple[Any, ...]:
    unique = list({str(value): value for value in values if value is not None}.values())
    axis = Axis("", tuple(unique))
    return tuple(sorted(unique)) if axis.numeric else tuple(unique)


def split(override: str) -> tuple[str, Any]:
    """``key=value`` as the key and the value that YAML reads; None for a deletion."""
    key, _, text = override.lstrip("+~").partition("=")
    key = moved.name(key)
    if (quoted := unquoted(text)) is not None:
        return key, quoted
    if text != "null" and kind_of(key) is Kind.text:
        return key, text
    if PLAIN.fullmatch(text):
        return key, float(text) if "." in text or "e" in text else int(text)
    try:
        value = OmegaConf.create({"value": None}) if not text else OmegaConf.from_dotlist([f"value={text}"])
        found = OmegaConf.to_container(value)["value"]  # type: ignore[call-overload, index]
    except Exception:  # not valid YAML: then it is text
        found = text
    return key, found if isinstance(found, (int, float, bool, str)) or found is None else text


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names; lists as text."""
    if not isinstance(value, dict) or not value:
        return {name: value if isinstance(value, (int, float, str)) or value is None else str(value)}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found.update(flat(item, f"{name}.{key}" if name else str(key)))
    return found


def number(value: Any) -> str:
    """A value as it would be typed: 1e-4 for 0.0001, 3 for 3.0."""
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e5:
        digits, _, power = f"{value:.3e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
    return f"{value:.4g}"
