"""How a training objective reads and encodes its records, as a value that is passed to the functions of this package."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from hydraft.config.data import DataConfig
from hydraft.data.formats import conversation_of
from hydraft.data.pair_truncation import truncate_pair
from hydraft.data.preferences import read_judged, read_pair
from hydraft.data.records import Judged, Read, Record
from hydraft.data.tokenize import Example, Truncation, encode_one, truncate

Encode = Callable[[Record, PreTrainedTokenizerBase, DataConfig], list[Example]]
"""The examples of a record, before truncation."""

Cut = Callable[[list[Example], int], list[tuple[Example, Truncation]]]
"""The examples of a record with at most so many tokens each, and what was cut off."""


def encode_conversations(record: Record, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> list[Example]:
    """The examples of every conversation of a record."""
    return [example for each in record.conversations for example in encode_one(each, tokenizer, data)]


def encode_judged(record: Record, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> list[Example]:
    """The example of an answer, with its judgement."""
    assert isinstance(record, Judged)
    examples = encode_conversations(record, tokenizer, data)
    return [{**example, "desirable": record.desirable} for example in examples]


def truncate_each(examples: list[Example], max_length: int) -> list[tuple[Example, Truncation]]:
    """Cut each example by itself."""
    return [truncate(example, max_length) for example in examples]


@dataclass(frozen=True)
class Encoding:
    """By default, that of supervised fine-tuning."""

    read: Read = conversation_of
    encode: Encode = encode_conversations
    sequences: int = 1
    """Examples that belong together and are always in the same micro-batch. Above 1, ``encode`` returns exactly so many."""
    name: str = ""
    """Part of the cache's key; empty for supervised fine-tuning."""
    cut: Cut = truncate_each
    """Truncates the examples of a record together."""
    judged: bool = False
    """Whether examples have the key ``desirable``, and each is followed by the answer of the record before it after its own prompt."""


SFT = Encoding()
PAIRS = Encoding(read_pair, encode_conversations, sequences=2, name="pairs", cut=truncate_pair)
"""Preference pairs: of each, the chosen and the rejected sequence."""
JUDGED = Encoding(read_judged, encode_judged, name="judged", judged=True)
"""Answers that are good or bad: one sequence each."""
