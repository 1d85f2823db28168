"""How many tokens records come to, from their characters alone: about right, in no time, without a tokenizer. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass

from hydraft.config.choices import TrainOn
from hydraft.config.schema import DataConfig
from hydraft.data.formats import Conversation, Record

WIDE, NARROW = 0.7, 0.25
"""Tokens a Chinese character and a Latin letter take: between the 0.5 of ChatGLM2 and the 1 of a small vocabulary for the
first; four letters a token is the usual rule for English."""

MOST = (1.0, 0.4)
"""The same where too many are safer than too few."""

TURN = 6
"""Tokens that a chat template puts around a turn."""


@dataclass(frozen=True)
class Text:
    """Estimates over all records, each cut to ``data.max_length``."""

    tokens: int
    """In all, an epoch."""
    longest_answer: int
    """No record has more trained tokens: what decides the largest logits."""


def about(text: str, rates: tuple[float, float] = (WIDE, NARROW)) -> float:
    """Tokens of ``text``, from its bytes: in UTF-8 a Chinese character has three and a Latin letter one."""
    wide = (len(text.encode("utf-8", "surrogatepass")) - len(text)) / 2
    return rates[0] * wide + rates[1] * (len(text) - wide)


def measure(records: Iterable[Record], data: DataConfig) -> Text:
    """Estimate the training records."""
    total = longest = 0.0
    for record in records:
        sizes = [_sizes(conversation, data) for conversation in record.conversations]
        total += sum(whole for whole, _ in sizes)
        longest = max(longest, sum(trained for _, trained in sizes))
    return Text(round(total), round(longest))


def _sizes(conversation: Conversation, data: DataConfig) -> tuple[float, float]:
    """The tokens of a conversation and its trained tokens, at most ``data.max_length`` each."""
    turns = conversation.turns
    answers = [turn.content for turn in turns if turn.role == "assistant"]
    if data.train_on is TrainOn.last:
        answers = answers[-1:]
    if conversation.plain is not None:
        answers = [conversation.plain]
    whole = about(conversation.plain or "") + sum(about(turn.text) + TURN for turn in turns)
    trained = sum(about(answer, MOST) + TURN for answer in answers)
    return min(whole, data.max_length), min(trained, data.max_length)
