"""Encodes conversations as token ids and labels. Answers and their end-of-sequence token are trained, prompts are not.

A conversation is rendered as pieces of text, each trained or not. The pieces are joined and tokenised as one string if every
boundary between pieces is also a boundary between tokens, as it is during generation. If a token crosses a boundary, the pieces are
tokenised one by one. (A character mask over the joined string is wrong for tokenizers with byte fallback, whose tokens may be parts
of a character.) The text of a record never becomes a special token (``special_tokens.py``).

Shapes: T tokens of one record.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import NamedTuple, TypedDict

from transformers import PreTrainedTokenizerBase

from hydraft.config.choices import TrainOn
from hydraft.config.data import DataConfig
from hydraft.config.template import fill
from hydraft.data import special_tokens
from hydraft.data.labels import IGNORE
from hydraft.data.records import Conversation, Record, Turn
from hydraft.errors import ConfigError


class Example(TypedDict):
    """One encoded sequence."""

    input_ids: list[int]  # (T,)
    labels: list[int]  # (T,): not shifted. The token id if it is trained, otherwise IGNORE; Piece has the exception


class Piece(NamedTuple):
    """A part of a rendered conversation."""

    text: str
    trained: bool
    ends: bool = False
    """Whether this piece follows a trained answer that the template does not end with the end-of-sequence token. The label of its
    first token is then end-of-sequence, so that the answer learns to end there."""


@dataclass(frozen=True)
class Truncation:
    """What ``data.max_length`` cut off, summed over records."""

    records: int = 0
    """Examples that were longer."""
    prompt_tokens: int = 0
    """Untrained tokens cut from the middle of what comes before the last answer."""
    answer_tokens: int = 0
    """Trained tokens cut from the end of the last answer, with its end-of-sequence token."""

    def __add__(self, other: "Truncation") -> "Truncation":
        return Truncation(
            self.records + other.records,
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
        )

    def __str__(self) -> str:
        return f"{self.records} records cut: {self.prompt_tokens} prompt and {self.answer_tokens} answer tokens"


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

    Qwen3's template does so: it removes the thinking from every answer except the last.

    Raises:
        ConfigError: the tokenizer has no end-of-sequence token, or ``data.template=chat`` and no chat template.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError("model.path: its tokenizer has no end-of-sequence token, which every answer needs")
    conversation = special_tokens.of(tokenizer).hide(conversation)
    if conversation.plain is not None:
        text = begin(tokenizer) + conversation.plain + str(tokenizer.eos_token)
        return [tokens([Piece(text, True)], tokenizer)]
    whole = render(conversation.turns, tokenizer, data)
    if whole is not None:
        return [tokens(whole, tokenizer)]
    ends = [index for index, turn in enumerate(conversation.turns, 1) if turn.role == "assistant"]
    examples = []
    for end in ends if data.train_on is TrainOn.all else ends[-1:]:
        examples.append(encode_last_answer(conversation.turns[:end], tokenizer, data))
    return examples


def encode_last_answer(turns: tuple[Turn, ...], tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> Example:
    """One example whose last answer alone is trained."""
    return tokens(_last_answer(turns, tokenizer, data), tokenizer)


def prompt_ids(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> list[int]:
    """The ids of the prompt of the last answer."""
    hidden = special_tokens.of(tokenizer).hide(conversation)
    return special_tokens.of(tokenizer).encode(_prompt(hidden.prompt, tokenizer, data.template))


def render(turns: tuple[Turn, ...], tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> list[Piece] | None:
    """The pieces of a conversation; None if the rendering of more turns does not start with that of fewer turns.

    Some templates (Baichuan2's) end only the last answer with end-of-sequence; after an earlier answer comes the special token of the
    next turn. That token is then the input and end-of-sequence its label, which is how Baichuan2 was trained.
    """
    pieces: list[Piece] = []
    text, eos = "", str(tokenizer.eos_token)
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        prompt = _prompt(turns[:index], tokenizer, data.template)
        answered = _answered(turns[: index + 1], prompt, tokenizer, data.template)
        unclosed = text.removesuffix(eos)
        ends = not prompt.startswith(text)
        if ends and prompt.startswith(unclosed) and special_tokens.of(tokenizer).names.match(prompt, len(unclosed)):
            pieces[-1] = pieces[-1]._replace(text=pieces[-1].text.removesuffix(eos))
            text = unclosed
        if not prompt.startswith(text) or not answered.startswith(prompt):
            return None
        pieces.append(Piece(prompt[len(text) :], False, ends and pieces[-1].trained))
        pieces.append(Piece(answered[len(prompt) :], data.train_on is TrainOn.all or index == len(turns) - 1))
        text = answered
    return pieces


def _last_answer(turns: tuple[Turn, ...], tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> list[Piece]:
    prompt = _prompt(turns[:-1], tokenizer, data.template)
    answered = _answered(turns, prompt, tokenizer, data.template)
    if not answered.startswith(prompt):
        raise ConfigError(
            "data.template=chat: in this model's chat template the answer does not follow the generation prompt; "
            'use a plain template: data.template="{instruction}\\n{input}\\n"'
        )
    return [Piece(prompt, False), Piece(answered[len(prompt) :], True)]


def _prompt(turns: tuple[Turn, ...], tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The text before the assistant's next answer."""
    if template == "chat":
        return _chat(turns, tokenizer, generation_prompt=True)
    eos = str(tokenizer.eos_token)
    text = begin(tokenizer)
    for turn in turns:
        if turn.role == "user":
            text += fill(template, turn.content, turn.input)
        else:
            text += turn.content + ("\n" if turn.role == "system" else eos)
    return text


def _answered(turns: tuple[Turn, ...], prompt: str, tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """``prompt`` and the answer with its end-of-sequence token."""
    eos = str(tokenizer.eos_token)
    if template != "chat":
        return prompt + turns[-1].content + eos
    text = _chat(turns, tokenizer, generation_prompt=False)
    end = text.rfind(eos)
    if end >= len(prompt):
        return text[: end + len(eos)]  # some templates add a line break, which need not be trained
    return text.rstrip("\n") + eos


def _chat(turns: tuple[Turn, ...], tokenizer: PreTrainedTokenizerBase, generation_prompt: bool) -> str:
    if not tokenizer.chat_template:
        raise ConfigError(
            "data.template=chat: this model's tokenizer has no chat template; "
            'use a plain template: data.template="{instruction}\\n{input}\\n"'
        )
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=generation_prompt, tokenize=False))
    except Exception as error:  # jinja raises errors that the template's author wrote
        raise ConfigError(f"data.template=chat: this model's chat template rejects a record: {error}") from error


def system_note(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> str | None:
    """How the chat template renders system turns if it does not support them; None if it does.

    The rendered text shows it: it equals that of a conversation without the system turn, or with its text in the question.
    """
    first = (record.conversations[0].turns for record in records)
    count = sum(bool(turns) and turns[0].role == "system" for turns in first)
    if not count or data.template != "chat":
        return None

    def rendered(question: str, *before: Turn) -> str:
        return _chat((*before, Turn("user", question)), tokenizer, generation_prompt=True)

    text = rendered("QUESTION", Turn("system", "SYSTEM"))
    if text == rendered("QUESTION"):
        effect = "it is left out"
    elif text in [rendered(f"SYSTEM{between}QUESTION") for between in ("\n", "\n\n", " ", "")]:
        effect = "it is put before the first question"
    else:
        return None
    have = "1 record has" if count == 1 else f"{count:,} records have"
    return f"{have} a system turn, which this model's chat template does not support: {effect}"


def tokens(pieces: list[Piece], tokenizer: PreTrainedTokenizerBase) -> Example:
    """Token ids and labels of rendered pieces."""
    ids = special_tokens.of(tokenizer).encode
    joined = ids("".join(piece.text for piece in pieces))
    prefixes, text = [], ""
    for piece in pieces[:-1]:
        text += piece.text
        prefixes.append(ids(text))
    if all(joined[: len(prefix)] == prefix for prefix in prefixes):
        ends = [*map(len, prefixes), len(joined)]
    else:
        parts = [ids(piece.text) for piece in pieces]
        joined = [token for part in parts for token in part]
        ends = list(accumulate(map(len, parts)))
    labels, start = list(joined), 0
    for piece, end in zip(pieces, ends, strict=True):
        if not piece.trained:
            labels[start:end] = [IGNORE] * (end - start)
        if piece.ends:
            labels[start] = int(tokenizer.eos_token_id)
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
    shorter: Example = {"input_ids": [ids[i] for i in kept], "labels": [labels[i] for i in kept]}
    shorter["labels"][0] = IGNORE
    return shorter, Truncation(1, len(lost) - trained, trained)


def begin(tokenizer: PreTrainedTokenizerBase) -> str:
    """The special tokens that the tokenizer adds before plain text; a chat template has its own."""
    known = special_tokens.of(tokenizer).tokens
    return "".join(known[token].content for token in takewhile(known.__contains__, tokenizer("a")["input_ids"]))
