"""Splits long plain texts into sequences of ``data.max_length`` tokens; conversations are truncated instead."""

from collections.abc import Iterable, Iterator

from hydraft.data.labels import IGNORE
from hydraft.data.records import Record
from hydraft.data.tokenize import Example, Truncation, truncate


def fit(record: Record, examples: Iterable[Example], max_length: int) -> Iterator[tuple[Example, Truncation]]:
    """The examples of a record with at most ``max_length`` tokens each, and what was cut off.

    A record of several conversations has a fixed number of examples, which belong together: they are truncated.
    """
    conversations = record.conversations
    plain = len(conversations) == 1 and conversations[0].plain is not None
    for example in examples:
        if plain and len(example["input_ids"]) > max_length:
            for piece in split(example, max_length):
                yield piece, Truncation()
        else:
            yield truncate(example, max_length)


def split(example: Example, max_length: int) -> Iterator[Example]:
    """Pieces of at most ``max_length`` tokens.

    Each begins with the last token of the piece before it, which is not trained there: so every token of the text is trained in one
    piece, as it would be in the whole, but for the first, which nothing predicts.
    """
    ids, labels = example["input_ids"], example["labels"]
    for start in range(0, max(1, len(ids) - 1), max_length - 1):
        end = start + max_length
        yield {"input_ids": ids[start:end], "labels": [IGNORE, *labels[start + 1 : end]]}
