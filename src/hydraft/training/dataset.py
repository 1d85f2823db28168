"""The training data set of a run: encoded records, in bins if they are packed or if a record has several sequences."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydraft.config.schema import Config
from hydraft.data import cache
from hydraft.data.batch import Examples, fill, group
from hydraft.data.encoding import Encoding
from hydraft.system.console import Screen


@dataclass(frozen=True)
class TrainingData:
    """Items to train on."""

    encoded: cache.Encoded
    examples: Examples
    lengths: Sequence[int]
    """Tokens of each item."""


def load_training_data(config: Config, tokenizer: Any, encoding: Encoding, screen: Screen) -> TrainingData:
    """Read the encoded records from the cache, or encode them on the first rank of this machine."""
    data = config.data

    def progress(done: int, total: int) -> None:
        if screen.name != "encoding":
            screen.phase("encoding", total)
        screen.advance(done - screen.completed)

    encodes = int(os.environ["LOCAL_RANK"]) == 0
    encoded = cache.training(data, config.seed, tokenizer, encodes, progress, encoding)
    for note in encoded.notes:
        screen.say(note)
    if encoded.truncation.records:
        screen.say(f"data.max_length={data.max_length}: {encoded.truncation}")
    sequences = encoding.sequences
    bins = group(encoded.lengths, sequences, data.max_length if data.packing else None)
    if data.packing and bins is not None:
        screen.say(fill(encoded.lengths, bins, data.max_length * sequences))
    examples = Examples(encoded, int(tokenizer.pad_token_id), bins, sequences)
    return TrainingData(encoded, examples, examples.lengths(encoded.lengths))
