"""Encodes conversations as token ids and labels. Answers and the token that ends them are trained, prompts are not.

A conversation is rendered as pieces of text, each trained or not (``rendering.py``). The pieces are joined and tokenised as one string if every
boundary between pieces is also a boundary between tokens, as it is during generation. If a token crosses a boundary, the pieces are
tokenised one by one. (A character mask over the joined string is wrong for tokenizers with byte fallback, whose tokens may be parts
of a character.) The text of a record never becomes a special token (``special_tokens.py``).

Shapes: T tokens of one record.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NotRequired, TypedDict

from transformers import PreTrainedTokenizerBase

from hydraft.config.data import DataConfig
from hydraft.data import special_tokens
from hydraft.data.labels import IGNORE
from hydraft.data.records import Conversation, Record, Turn
from hydraft.data.rendering import Piece, Rendering, begin, last_answer, render, trains
from hydraft.errors import ConfigError


class Example(TypedDict):
    """One encoded sequence."""

    input_ids: list[int]  # (T,)
    labels: list[int]  # (T,): not shifted. The token id if it is trained, otherwise IGNORE; Piece has the exception
    index: NotRequired[int]
    """Its number among all documents of a run, for an objective with a reference."""
    desirable: NotRequired[bool]
    """Whether a judged answer is good."""


@dataclass(frozen=True)
class Truncation:
    """What ``data.max_length`` cut off, summed over records."""

    records: int = 0
    """Examples that were longer; of a preference pair, the two are one."""
    prompt_tokens: int = 0
    """Untrained tokens cut from the middle of what comes before the last answer."""
    answer_tokens: int = 0
    """Trained tokens cut from the end of the last answer, with its end-of-sequence token."""
    same: int = 0
    """Preference pairs whose answers are the same after that."""

    def __add__(self, other: "Truncation") -> "Truncation":
        return Truncation(
            self.records + other.records,
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
            self.same + other.same,
        )

    def __str__(self) -> str:
        same = f"; {self.same} pairs have the same answers after that, and train nothing" if self.same else ""
        return f"{self.records} records cut: {self.prompt_tokens} prompt and {self.answer_tokens} answer tokens{same}"


def encode(
    records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, data: DataConfig
) -> tuple[list[Example], Truncation]:
    """Encode and truncate every conversation."""
    examples, cut = [], Truncation()
    for conversation in (each for record in records for each in record.conversations):
        for example in encode_one(conversation, tokenizer, data):
            kept, lost = truncate(example, data.max_length)
            examples.append(kept)
            cut += lost
    return examples, cut


def encode_one(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> list[Example]:
    """The examples of one conversation: one, or one for each answer if the template renders earlier answers differently.

    Qwen3's template does so: it removes the thinking from every answer except the last. There is none if nothing of it is trained.

    Raises:
        ConfigError: the tokenizer has no end-of-sequence token, or ``data.template=chat`` and no chat template.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError("model.path: its tokenizer has no end-of-sequence token, which every answer needs")
    chat = special_tokens.of(tokenizer).hide(conversation)
    if chat.plain is not None:
        text = begin(tokenizer) + chat.plain + str(tokenizer.eos_token)
        return [tokens([Piece(text, True)], tokenizer)]
    rendering = Rendering(chat, tokenizer, data)
    whole = render(rendering)
    if whole is not None:
        return [tokens(whole, tokenizer)] if any(piece.trained for piece in whole) else []
    ends = [index + 1 for index in range(len(chat.turns)) if trains(rendering, index)]
    return [tokens(last_answer(rendering, end), tokenizer) for end in ends]


def answered(conversation: Conversation, answer: str, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> Example:
    """The conversation with ``answer`` in place of its last answer, which alone is trained, before truncation.

    Raises:
        ConfigError: the template rejects the conversation, or has no place for its tools.
    """
    turns = (*conversation.prompt, Turn("assistant", answer))
    chat = special_tokens.of(tokenizer).hide(replace(conversation, turns=turns))
    return tokens(last_answer(Rendering(chat, tokenizer, data), len(turns)), tokenizer)


def prompt_ids(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> list[int]:
    """The ids of the prompt of the last answer, with its tools and template variables.

    Raises:
        ConfigError: the template rejects the conversation, or has no place for its tools.
    """
    return special_tokens.of(tokenizer).encode(prompt_text(conversation, tokenizer, data))


def prompt_text(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> str:
    """The text of that prompt, with the names of special tokens hidden (``special_tokens.hide``).

    With ``data.thinking=auto``, that is if it is not known how the model was trained, thinking is left to the template.

    Raises:
        ConfigError: the template rejects the conversation, or has no place for its tools.
    """
    rendering = Rendering(special_tokens.of(tokenizer).hide(conversation), tokenizer, data)
    return rendering.prompt(rendering.chat.prompt, rendering.wanted)


def tokens(pieces: list[Piece], tokenizer: PreTrainedTokenizerBase) -> Example:
    """Token ids and labels of rendered pieces."""
    special = special_tokens.of(tokenizer)
    bounds = list(accumulate(len(piece.text) for piece in pieces))
    joined, ends = special.encode_with_ends("".join(piece.text for piece in pieces), bounds[:-1])
    if ends is None:
        parts = [special.encode(piece.text) for piece in pieces]
        joined = [token for part in parts for token in part]
        ends = list(accumulate(map(len, parts)))[:-1]
    ends.append(len(joined))
    labels, start = list(joined), 0
    for piece, end in zip(pieces, ends, strict=True):
        if not piece.trained:
            labels[start:end] = [IGNORE] * (end - start)
        if piece.ends is not None:
            labels[start] = special_tokens.of(tokenizer).label(joined[start], piece.ends)
        start = end
    if labels:
        labels[0] = IGNORE  # no position predicts the first token
    return {"input_ids": joined, "labels": labels}


def truncate(example: Example, max_length: int) -> tuple[Example, Truncation]:
    """Cut an example to ``max_length`` tokens and keep its last answer as far as possible.

    Tokens before the last answer are cut first, from their middle (the ends hold the instruction and the turn markers), until a
    quarter of ``max_length`` is left; then the end of the answer is cut.
    """
    ids, labels = example["input_ids"], example["labels"]
    excess = len(ids) - max_length
    if excess <= 0:
        return example, Truncation()
    start = len(labels)  # where the last answer begins
    while start > 0 and labels[start - 1] != IGNORE:
        start -= 1
    keep = max(start - excess, min(start, max_length // 4))
    head = (keep + 1) // 2
    kept = [*range(head), *range(start - (keep - head), start), *range(start, len(ids))][:max_length]
    chosen = set(kept)
    lost = [label for index, label in enumerate(labels) if index not in chosen]
    trained = sum(label != IGNORE for label in lost)
    shorter: Example = {**example, "input_ids": [ids[i] for i in kept], "labels": [labels[i] for i in kept]}
    shorter["labels"][0] = IGNORE
    return shorter, Truncation(1, len(lost) - trained, trained)
