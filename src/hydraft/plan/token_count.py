"""Estimates the number of tokens of records from their characters, fast and without a tokenizer. No torch."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from hydraft.config.choices import TrainOn
from hydraft.config.data import DataConfig
from hydraft.data.records import Conversation, Record

WIDE, NARROW = 0.7, 0.25
"""Tokens per Chinese character and per Latin letter: between the 0.5 of ChatGLM2 and the 1 of a small vocabulary for the
first; four letters per token is the usual rule for English."""

MOST = (1.0, 0.4)
"""The same for an upper bound."""

TURN = 6
"""Tokens that a chat template adds per turn."""


@dataclass(frozen=True)
class Text:
    """Estimates over all records; conversations are cut to ``data.max_length``, and plain texts split."""

    tokens: int
    """Of an epoch."""
    longest_answer: int
    """The most trained tokens of a record, which determines the size of the logits."""
    examples: int = 0
    """Sequences that are trained in an epoch: one a record, but more of a long plain text."""


def estimate(text: str, rates: tuple[float, float] = (WIDE, NARROW)) -> float:
    """Tokens of ``text``, from its UTF-8 bytes: a Chinese character has three and a Latin letter one."""
    wide = (len(text.encode("utf-8", "surrogatepass")) - len(text)) / 2
    return rates[0] * wide + rates[1] * (len(text) - wide)


def measure(records: Iterable[Record], data: DataConfig) -> Text:
    """Estimate the training records."""
    total = longest = 0.0
    examples = 0
    for record in records:
        sizes = [_sizes(conversation, data) for conversation in record.conversations]
        total += sum(whole for whole, _, _ in sizes)
        longest = max(longest, sum(trained for _, trained, _ in sizes))
        examples += max(pieces for _, _, pieces in sizes)
    return Text(round(total), round(longest), examples)


def _sizes(conversation: Conversation, data: DataConfig) -> tuple[float, float, int]:
    """The tokens of a conversation and its trained tokens, at most ``data.max_length`` each, and its pieces.

    A plain text is split into pieces; of it, the first number is of all pieces.
    """
    if conversation.plain is not None:
        whole = estimate(conversation.plain)
        pieces = max(1, math.ceil(whole / (data.max_length - 1)))
        return whole, min(estimate(conversation.plain, MOST) + TURN, data.max_length), pieces
    turns = conversation.turns
    answers = [turn.content for turn in turns if turn.role == "assistant"]
    if data.train_on is TrainOn.last:
        answers = answers[-1:]
    whole = sum(estimate(turn.text) + TURN for turn in turns)
    trained = sum(estimate(answer, MOST) + TURN for answer in answers)
    return min(whole, data.max_length), min(trained, data.max_length), 1
