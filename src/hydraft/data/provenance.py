"""The source and the record numbers that encoded examples come from, for messages about a batch."""

from collections.abc import Iterable

from hydraft.data.encoded import Encoded

Origins = dict[str, list[int]]
"""By source: record numbers, from 1."""


def of_examples(examples: Iterable[int], encoded: Encoded) -> Origins:
    """The origins of encoded examples, given by their indices."""
    found: Origins = {}
    for source, number in sorted({encoded.origin(example) for example in examples}):
        found.setdefault(source, []).append(number)
    return found


def describe(origins: Origins, most: int = 8) -> str:
    """``origins`` as text, with at most ``most`` record numbers of each source."""
    parts = []
    for source, numbers in origins.items():
        more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
        shown = ", ".join(map(str, numbers[:most])) + more
        parts.append(f"record{'s' if len(numbers) > 1 else ''} {shown} of {source}")
    return "; ".join(parts) or "no record"
