"""Class labels (``data.labels``): the answers that they stand for, and the classes that are told apart. No torch."""

from collections.abc import Sequence
from typing import Any

from hydraft.errors import ConfigError


def classes(labels: Sequence[str]) -> list[str]:
    """The different answers in ``data.labels``; none if there are fewer than two, between which nothing can be told."""
    found = list(dict.fromkeys(label.strip() for label in labels if label.strip()))
    return found if len(found) > 1 else []


def answer_of(label: Any, labels: Sequence[str], what: str) -> Any:
    """The text of a label: a number is an index into ``labels``, a text is itself and one of ``labels`` if there are any.

    Args:
        what: the record and its key, for messages.

    Raises:
        ConfigError: a number without ``data.labels`` or beyond them, or a text that is not one of them.
    """
    if isinstance(label, str) and label.strip() in labels:
        return label.strip()
    number = number_of(label)
    if number is None:
        if labels and isinstance(label, str) and label.strip():
            raise ConfigError(f"{what} is {label!r}, which is none of data.labels ({', '.join(labels)})")
        return label
    if not labels:
        raise ConfigError(f"{what} is the number {number}; give the answers: data.labels=[the answer for 0, for 1, …]")
    if not 0 <= number < len(labels):
        raise ConfigError(f"{what} is {number}, and data.labels has the answers for 0 to {len(labels) - 1}")
    return labels[number]


def number_of(label: Any) -> int | None:
    """A label that is a whole number, also as text (.csv) or as a fraction (a column with empty cells); None for a text."""
    if isinstance(label, str):
        return int(label) if label.strip().isdecimal() and len(label.strip()) < 9 else None
    if isinstance(label, (bool, int)) or (isinstance(label, float) and label.is_integer()):
        return int(label)
    return None


def judgement(value: Any) -> bool | None:
    """Whether a value says that an answer is good: true or false, 1 or 0, also as text; None if it says neither."""
    if isinstance(value, str):
        return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().casefold())
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None
