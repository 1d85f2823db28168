"""The value of ``data.columns``. No torch."""

from collections.abc import Mapping

COLUMNS = (
    "instruction", "input", "output", "system", "history", "reasoning", "tools",
    "messages", "conversations", "role", "content",
    "chosen", "rejected", "text", "label", "task",
)  # fmt: skip
"""The names that a key of a record can be given."""

ALLOWED = f"{{name: key of the records}} with these names: {', '.join(COLUMNS)}"
"""What is allowed, in words that follow "must be"."""


def are_columns(value: Mapping[str, str]) -> bool:
    """Whether ``value`` gives known names to keys, each to another key."""
    keys = list(value.values())
    return all(name in COLUMNS for name in value) and all(keys) and len(set(keys)) == len(keys)
