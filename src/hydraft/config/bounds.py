"""Fields of the schema with bounds and a unit, and the check that reads them. No torch.

A setting is declared as ``field: int = setting(4, at_least=1, unit="records")``: default, bounds and unit are in one place,
and the refusals, ``--help`` and docs/configuration.md are made from them.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, is_dataclass
from enum import Enum
from typing import Any

from hydraft.errors import ConfigError


class Effect(Enum):
    """What a setting does beyond describing the run. A config in another user's folder does not decide it (``foreign.py``)."""

    none = "none"
    """It is a number, a choice, or a name of something in the run."""
    acts = "acts"
    """It runs a program, or names what is contacted or gets data."""
    names_code = "names_code"
    """It names a model, whose code runs with ``model.trust_remote_code=true``."""
    reads = "reads"
    """It names files whose content gets into the run's folder."""


LARGEST = 2**53
"""Of a whole number: beyond it a float, such as a time or a share that is computed from it, is another number."""

LARGEST_SEED = 2**32 - 1
"""numpy takes none that is larger (numpy.random.seed)."""


@dataclass(frozen=True)
class Bounds:
    """The values that a setting may have, beyond its type."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    one_of: tuple[Any, ...] = ()
    valid: Callable[[Any], bool] | None = None
    """For a value that is more than a number; ``allowed`` says the same in words."""
    allowed: str | None = None
    """What ``valid`` accepts, in words that follow "must be"."""
    refusal: str | None = None
    """Replaces the generated text of a refusal."""
    hint: str = ""
    """Follows the generated text of a refusal."""
    unit: str | None = None
    effect: Effect = Effect.none

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is within the bounds; null always is, since the type says whether it may be null."""
        if value is None:
            return True
        if self.one_of:
            return value in self.one_of
        if self.valid is not None:
            try:
                return self.valid(value)
            except TypeError:  # a list in a list, where OmegaConf does not look
                return False
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    @property
    def text(self) -> str:
        """The bounds in words that follow "must be"; empty without bounds."""
        if self.allowed is not None:
            return self.allowed
        if self.one_of:
            *most, last = map(str, self.one_of)
            return f"{', '.join(most)} or {last}"
        low = self.at_least if self.at_least is not None else self.above
        unit = f" {self.unit}" if self.unit and 1 not in (low, self.at_most) else ""
        match (self.at_least, self.above, self.at_most, self.below):
            case (None, None, None, None):
                return ""
            case (0, None, None, None):
                return f"0{unit} or more"
            case (low, None, None, None):
                return f"at least {low}{unit}"
            case (None, low, None, None):
                return f"above {low}{unit}"
            case (low, None, None, high):
                return f"in [{low}, {high})"
            case (None, low, high, None):
                return f"in ({low}, {high}]"
            case (None, low, None, high):
                return f"above {low} and below {high}{unit}"
            case (low, _, high, _):
                return f"from {low} to {high}{unit}"
        raise AssertionError(self)

    @property
    def symbols(self) -> str:
        """The bounds in mathematical notation, for tables; in words where ``valid`` decides."""
        if self.allowed is not None:
            return self.allowed
        if self.one_of:
            return ", ".join(f"`{value}`" for value in self.one_of)
        signs = {"≥": self.at_least, ">": self.above, "≤": self.at_most, "<": self.below}
        return ", ".join(f"{sign} {bound:,}" for sign, bound in signs.items() if bound is not None)


def setting(default: Any = dataclasses.MISSING, *, factory: Any = dataclasses.MISSING, **bounds: Any) -> Any:
    """A dataclass field with ``Bounds`` in its metadata.

    Args:
        default: the value where none is given.
        factory: makes the default, where that is a list or a dict.
        bounds: fields of ``Bounds``.
    """
    metadata = {"bounds": Bounds(**bounds)}
    if factory is not dataclasses.MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def bounds_of(declared: "dataclasses.Field[Any]") -> Bounds:
    """The bounds of a dataclass field; without any where it declares none."""
    found = declared.metadata.get("bounds", Bounds())
    assert isinstance(found, Bounds)
    return found


def violations(section: Any, prefix: str = "") -> Iterator[str]:
    """The text of the refusal of each setting in ``section``, and in the sections below it, that is out of its bounds."""
    for declared in dataclasses.fields(section):
        value, name, bounds = getattr(section, declared.name), f"{prefix}{declared.name}", bounds_of(declared)
        if is_dataclass(value):
            yield from violations(value, f"{name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{name}={value}: is no finite number{f'; it must be {bounds.text}' if bounds.text else ''}{bounds.hint}"
        elif type(value) is int and abs(value) > LARGEST:
            yield f"{name}={value}: is too large; it must be {bounds.text or 'a number'}, and at most {LARGEST}"
        elif not bounds.holds(value):
            shown = value.value if isinstance(value, Enum) else value
            yield f"{name}={shown}: {bounds.refusal or f'must be {bounds.text}{bounds.hint}'}"


def check(config: Any) -> None:
    """Refuse a config in which a setting is out of its bounds.

    Raises:
        ConfigError: names the first such setting and its bounds.
    """
    for message in violations(config):
        raise ConfigError(message)
