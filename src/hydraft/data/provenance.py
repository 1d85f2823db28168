"""Finds the source and the record numbers that encoded examples come from, for messages about a batch."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from hydraft.config.data import DataConfig
from hydraft.data import mixture
from hydraft.data.encoding import SFT, Encoding

Origins = dict[str, list[int]]
"""By source: record numbers, from 1."""


def of_examples(
    examples: Iterable[int],
    count: int,
    data: DataConfig,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    encoding: Encoding = SFT,
) -> Origins:
    """The origins of encoded examples. The sources are read again, so this is only for rare messages.

    Args:
        examples: their indices among the ``count`` examples of the run.
    """
    origins = []
    parts = mixture.parts(data, seed, encoding.read)
    one_each = sum(len(records) for _, records in parts) == count
    for source, records in parts:
        for record in records:
            made = 1 if one_each else len(encoding.encode(record, tokenizer, data))
            origins += [(source, record.number)] * made
    found: Origins = {}
    for source, number in sorted({origins[example] for example in examples}):
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
