"""How many tokens records come to, from their characters alone: about right, in no time, without a tokenizer. No torch."""

from collections.abc import Iterable
from dataclasses import dataclass

from hydraft.choices import TrainOn
from hydraft.config import DataConfig
from hydraft.data.formats import Conversation

WIDE, NARROW = 0.7, 0.25
"""Tokens a Chinese character and a Latin letter take: between the 0.5 of ChatGLM2 and the 1 of a small vocabulary for the
first; four letters a token is the usual rule for English."""

TURN = 6
"""Tokens that a chat template puts around a turn."""


@dataclass(frozen=True)
class Text:
    """Estimates over all records, each cut to ``data.max_length``."""

    tokens: int
    """In all, an epoch."""
    longest_answer: int
    """The most trained tokens of any record: what decides the largest logits."""


def about(text: str) -> float:
    """Tokens of ``text``, from its bytes: in UTF-8 a Chinese character has three and a Latin letter one."""
    wide = (len(text.encode("utf-8", "surrogatepass")) - len(text)) / 2
    return WIDE * wide + NARROW * (len(text) - wide)


def measure(conversations: Iterable[Conversation], data: DataConfig) -> Text:
    """Estimate the training records."""
    total = longest = 0.0
    for conversation in conversations:
        spoken = [(turn.role, about(turn.text) + TURN) for turn in conversation.turns]
        answers = [tokens for role, tokens in spoken if role == "assistant"]
        if conversation.plain is not None:
            whole = answer = about(conversation.plain)
        else:
            whole = sum(tokens for _, tokens in spoken)
            answer = sum(answers if data.train_on is TrainOn.all else answers[-1:])
        total += min(whole, data.max_length)
        longest = max(longest, min(answer, data.max_length))
    return Text(round(total), round(longest))
