"""How a training objective reads and encodes its records, as a value that is passed to the functions of this package."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from hydraft.config.data import DataConfig
from hydraft.data.formats import conversation_of
from hydraft.data.records import Read, Record
from hydraft.data.tokenize import Example, encode_one

Encode = Callable[[Record, PreTrainedTokenizerBase, DataConfig], list[Example]]
"""The examples of a record, before truncation."""


def encode_conversations(record: Record, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> list[Example]:
    """The examples of every conversation of a record."""
    return [example for each in record.conversations for example in encode_one(each, tokenizer, data)]


@dataclass(frozen=True)
class Encoding:
    """By default, that of supervised fine-tuning."""

    read: Read = conversation_of
    encode: Encode = encode_conversations
    sequences: int = 1
    """Examples that belong together and are always in the same micro-batch. Above 1, ``encode`` returns exactly so many."""
    name: str = ""
    """Part of the cache's key; empty for supervised fine-tuning."""
    mismatched: bool = False
    """Whether each example is followed by the answer of the record before it, after its own prompt, as a document of its own."""


SFT = Encoding()
