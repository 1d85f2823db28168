"""Splits a typed value at its commas, as Hydra's grammar does, also where that cannot read the parts. No torch."""

import random
import re
from collections.abc import Iterator

from hydraft.config.text import original

QUOTED = re.compile(r"""\s*("(?:(?:\\\\)*|.*?[^\\](?:\\\\)*)"|'(?:(?:\\\\)*|.*?[^\\](?:\\\\)*)')\s*""", re.DOTALL)
"""A quoted value, with the spaces around it, which mean nothing (hydra/grammar/OverrideLexer.g4, QUOTED_VALUE)."""

CHOICES = re.compile(r"\s*(choice|shuffle|sort|tag)\s*\((.*)\)\s*", re.DOTALL)
"""Hydra's functions whose result is a list of values to sweep over."""

INTERVALS = re.compile(r"\s*(range|interval|glob)\s*\(.*\)\s*", re.DOTALL)
"""Those whose result is another kind of sweep."""

PAIRS = {"(": ")", "[": "]", "{": "}"}


def unquoted(value: str) -> str | None:
    """The text in Hydra's quotes, as it was typed; None for a value that is not quoted."""
    if QUOTED.fullmatch(value) is None:
        return None
    value = value.strip()
    # Before a quote, and at the end, Hydra's grammar halves the backslashes.
    return original(re.sub(rf"(\\+)(?={value[0]}|$)", lambda found: found[1][: len(found[1]) // 2], value[1:-1]))


def split(value: str, separator: str = ",") -> list[str]:
    """The parts of ``value`` between separators that are outside of quotes, parentheses, brackets and braces.

    A quote means something at the start of an element only, so that ``it's`` is text, and a backslash before a separator makes it
    text. Where brackets do not match, they are text too.
    """
    parts: list[str] = []
    start, depth, nested = 0, 0, _is_balanced(value)
    for position, character in _unquoted(value):
        depth += nested * ((character in PAIRS) - (character in PAIRS.values()))
        if character == separator and depth == 0:
            parts.append(value[start:position])
            start = position + 1
    return [*parts, value[start:]]


def choices(value: str) -> list[str]:
    """The values of a sweep: ``a,b``, or ``choice(a,b)``, of which Hydra itself loses the quotes of ``choice('1e3','007')``."""
    match = CHOICES.fullmatch(value)
    if match is None or inside(f"({match[2]})", "()") is None:
        return split(value)
    function, arguments = match[1], split(match[2])
    descending = any(re.fullmatch(r"\s*reverse\s*=\s*true\s*", one, re.IGNORECASE) for one in arguments)
    values = [one for one in arguments if not re.match(r"\s*reverse\s*=", one)]
    if function == "tag":
        values = values[-1:]
    found = [part for one in values for part in (choices(one) if CHOICES.fullmatch(one) else [one.strip()])]
    if function == "shuffle":
        random.shuffle(found)
    return sorted(found, reverse=descending) if function == "sort" else found


def inside(value: str, brackets: str) -> str | None:
    """What is inside ``value`` if it is in one pair of ``brackets``, such as ``[]``; None if it is not."""
    value = value.strip()
    if len(value) < 2 or (value[0], value[-1]) != tuple(brackets):
        return None
    depth = 0
    for position, character in _unquoted(value):
        depth += (character == brackets[0]) - (character == brackets[1])
        if depth == 0 and position < len(value) - 1:
            return None  # "[INST] a [/INST]"
    return value[1:-1]


def _unquoted(value: str) -> Iterator[tuple[int, str]]:
    """Positions and characters of ``value``, without what is quoted or escaped."""
    position, at_start = 0, True
    while position < len(value):
        quoted = QUOTED.match(value, position) if at_start else None
        if quoted and (quoted.end() == len(value) or value[quoted.end()] in ",:)]}"):
            position, at_start = quoted.end(), False
            continue
        character = value[position]
        if character == "\\":
            position, at_start = position + 2, False
            continue
        yield position, character
        at_start = character in ",:([{" or (at_start and character.isspace())
        position += 1


def _is_balanced(value: str) -> bool:
    expected: list[str] = []
    for _, character in _unquoted(value):
        if character in PAIRS:
            expected.append(PAIRS[character])
        elif character in PAIRS.values() and (not expected or expected.pop() != character):
            return False
    return not expected
