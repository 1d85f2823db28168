"""From what a batch holds back to what a person can look up: the source of a record, and its number there."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from hydraft.config.schema import DataConfig
from hydraft.data import mixture
from hydraft.data.tokenize import encode_one

Places = dict[str, list[int]]
"""By source, the numbers of records in it, from 1."""


def of_examples(
    examples: Iterable[int], count: int, data: DataConfig, seed: int, tokenizer: PreTrainedTokenizerBase
) -> Places:
    """Where encoded examples come from. The sources are read once more, so this is for the rare moment that asks.

    Args:
        examples: their numbers among the ``count`` of the run.
    """
    origins = []
    parts = mixture.parts(data, seed)
    alone = sum(len(conversations) for _, conversations in parts) == count
    for source, conversations in parts:
        for conversation in conversations:
            several = 1 if alone else len(encode_one(conversation, tokenizer, data))
            origins += [(source, conversation.number)] * several
    places: Places = {}
    for source, number in sorted({origins[example] for example in examples}):
        places.setdefault(source, []).append(number)
    return places


def told(places: Places, most: int = 8) -> str:
    """``places`` in words, no more than ``most`` records of a source by number."""
    parts = []
    for source, numbers in places.items():
        shown = ", ".join(map(str, numbers[:most])) + (
            f" and {len(numbers) - most} more" if len(numbers) > most else ""
        )
        parts.append(f"record{'s' if len(numbers) > 1 else ''} {shown} of {source}")
    return "; ".join(parts) or "no record"
