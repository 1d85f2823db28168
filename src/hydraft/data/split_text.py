"""Splits long plain texts into sequences of ``data.max_length`` tokens; conversations are truncated instead."""

from collections.abc import Iterable, Iterator

from hydraft.data.encoding import Cut, truncate_each
from hydraft.data.labels import IGNORE
from hydraft.data.records import Record
from hydraft.data.tokenize import Example, Truncation


def fit(
    record: Record, examples: Iterable[Example], max_length: int, cut: Cut = truncate_each
) -> Iterator[tuple[Example, Truncation]]:
    """The examples of a record with at most ``max_length`` tokens each, and what was cut off.

    A plain text is split. Other records are truncated by ``cut``: those of several conversations have a fixed number of examples,
    which belong together.
    """
    conversations = record.conversations
    if len(conversations) != 1 or conversations[0].plain is None:
        yield from cut(list(examples), max_length)
        return
    for example in examples:
        if len(example["input_ids"]) > max_length:
            for piece in split(example, max_length):
                yield piece, Truncation()
        else:
            yield example, Truncation()


def split(example: Example, max_length: int) -> Iterator[Example]:
    """Pieces of at most ``max_length`` tokens.

    Each begins with the last token of the piece before it, which is not trained there: so every token of the text is trained in one
    piece, as it would be in the whole, but for the first, which nothing predicts.
    """
    ids, labels = example["input_ids"], example["labels"]
    for start in range(0, max(1, len(ids) - 1), max_length - 1):
        end = start + max_length
        yield {"input_ids": ids[start:end], "labels": [IGNORE, *labels[start + 1 : end]]}
