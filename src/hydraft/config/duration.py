"""Times as people type them: ``90m``, ``2h``, ``1h30m``, ``45s``, or a number of seconds. No torch."""

import math
import re

TEXT = "a time above 0 such as 90m, 2h, 1h30m or 45s, or a number of seconds"

UNITS = {"h": 3600, "m": 60, "s": 1}
_PATTERN = re.compile("".join(rf"(?:([0-9]+(?:\.[0-9]+)?){unit})?" for unit in UNITS))
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def seconds(text: str) -> float | None:
    """The time in seconds; None for a text that is no time above 0."""
    if _NUMBER.fullmatch(text):
        found = float(text)
    elif text and (match := _PATTERN.fullmatch(text)):
        found = sum(float(part or 0) * factor for part, factor in zip(match.groups(), UNITS.values(), strict=True))
    else:
        return None
    return found if 0 < found < math.inf else None


def is_duration(text: str) -> bool:
    """Whether ``seconds`` can read it."""
    return seconds(text) is not None


def shown(value: float) -> str:
    """A time as text, in the two largest units: ``1 h 30 min``, ``45 s``."""
    whole = round(value)
    if whole < 60:
        return f"{whole} s" if value >= 10 or value == whole else f"{value:.1f} s"
    large, small, names = (3600, 60, ("h", "min")) if whole >= 3600 else (60, 1, ("min", "s"))
    first, rest = divmod(whole, large)
    second = rest // small
    return f"{first} {names[0]}" + (f" {second} {names[1]}" if second else "")
