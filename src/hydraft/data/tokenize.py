"""Conversations to tokens and labels. Only what the model is to say is trained: answers and their end, never a prompt.

A conversation is rendered as pieces of text, each trained or not. The pieces are joined and tokenised as one string where that keeps every
boundary between them, as generation would see it; where a merge crosses a boundary they are tokenised one by one. (A mask over
the characters of one string is wrong for tokenizers with byte fallback, whose tokens may be parts of a character.) What a record's
own text says is never a special token (``special.py``).

Shapes: T tokens of one record.
"""

from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import NamedTuple, TypedDict

from transformers import PreTrainedTokenizerBase

from hydraft.config.choices import TrainOn
from hydraft.config.schema import DataConfig
from hydraft.data import special_tokens
from hydraft.data.formats import Conversation, Turn
from hydraft.data.labels import IGNORE
from hydraft.errors import ConfigError


class Example(TypedDict):
    """One record, ready for the model."""

    input_ids: list[int]  # (T,)
    labels: list[int]  # (T,): what the token before is to say. The same ids where trained, IGNORE elsewhere; see Piece


class Piece(NamedTuple):
    """A part of a rendered conversation."""

    text: str
    trained: bool
    ends: bool = False
    """Whether its first token comes where a trained answer ends that the template does not close. That token's label is
    then the end of sequence: the answer is taught to end there, while the turns after it go on as the template has them."""


@dataclass(frozen=True)
class Truncation:
    """What ``data.max_length`` cut away, over all records."""

    records: int = 0
    """Records that were longer."""
    prompt_tokens: int = 0
    """Untrained tokens cut, from the middle of what leads to the last answer."""
    answer_tokens: int = 0
    """Trained tokens cut, from the end of the last answer (the end-of-sequence token with them)."""

    def __add__(self, other: "Truncation") -> "Truncation":
        return Truncation(
            self.records + other.records,
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
        )

    def __str__(self) -> str:
        return f"{self.records} records cut: {self.prompt_tokens} prompt and {self.answer_tokens} answer tokens"


def encode(
    conversations: list[Conversation], tokenizer: PreTrainedTokenizerBase, data: DataConfig
) -> tuple[list[Example], Truncation]:
    """Tokens and labels of every conversation, and what was cut from them."""
    examples, cut = [], Truncation()
    for conversation in conversations:
        for example in encode_one(conversation, tokenizer, data):
            kept, lost = truncate(example, data.max_length)
            examples.append(kept)
            cut += lost
    return examples, cut


def encode_one(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> list[Example]:
    """The examples of one conversation: one, or one an answer where the template shows earlier answers in another way.

    Qwen3's template is of that kind: it takes the thinking out of every answer but the last.

    Raises:
        ConfigError: the tokenizer has no end-of-sequence token, or no chat template where one is asked for.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError("model.path: its tokenizer has no end-of-sequence token, so no answer could learn to end")
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
        pieces = _last_answer(conversation.turns[:end], tokenizer, data)
        examples.append(tokens(pieces, tokenizer))
    return examples


def prompt_ids(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> list[int]:
    """The ids that ask for the last answer, ending where it begins."""
    hidden = special_tokens.of(tokenizer).hide(conversation)
    return special_tokens.of(tokenizer).encode(_prompt(hidden.asked, tokenizer, data.template))


def render(turns: tuple[Turn, ...], tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> list[Piece] | None:
    """The pieces of a conversation; None if its rendering does not grow turn by turn.

    Some templates close the last answer only, and open the next turn with a special token in that place (Baichuan2's).
    Both are said then: the token is the input, the end of sequence its label, which is how Baichuan2 was trained.
    """
    pieces: list[Piece] = []
    text, eos = "", str(tokenizer.eos_token)
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        asked = _prompt(turns[:index], tokenizer, data.template)
        answered = _answered(turns[: index + 1], asked, tokenizer, data.template)
        unclosed = text.removesuffix(eos)
        ends = not asked.startswith(text)
        if ends and asked.startswith(unclosed) and special_tokens.of(tokenizer).names.match(asked, len(unclosed)):
            pieces[-1] = pieces[-1]._replace(text=pieces[-1].text.removesuffix(eos))
            text = unclosed
        if not asked.startswith(text) or not answered.startswith(asked):
            return None
        pieces.append(Piece(asked[len(text) :], False, ends and pieces[-1].trained))
        pieces.append(Piece(answered[len(asked) :], data.train_on is TrainOn.all or index == len(turns) - 1))
        text = answered
    return pieces


def _last_answer(turns: tuple[Turn, ...], tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> list[Piece]:
    asked = _prompt(turns[:-1], tokenizer, data.template)
    answered = _answered(turns, asked, tokenizer, data.template)
    if not answered.startswith(asked):
        raise ConfigError(
            "data.template=chat: this model's chat template does not continue its own prompt with the answer; "
            'give a plain one: data.template="{instruction}\\n{input}\\n"'
        )
    return [Piece(asked, False), Piece(answered[len(asked) :], True)]


def _prompt(turns: tuple[Turn, ...], tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The text up to where the assistant speaks next."""
    if template == "chat":
        return _chat(turns, tokenizer, ask=True)
    eos = str(tokenizer.eos_token)
    text = begin(tokenizer)
    for turn in turns:
        if turn.role == "user":
            text += template.format(instruction=turn.content, input=turn.input)
        else:
            text += turn.content + ("\n" if turn.role == "system" else eos)
    return text


def _answered(turns: tuple[Turn, ...], asked: str, tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """``asked`` and the answer, up to and with the end-of-sequence token."""
    eos = str(tokenizer.eos_token)
    if template != "chat":
        return asked + turns[-1].content + eos
    text = _chat(turns, tokenizer, ask=False)
    end = text.rfind(eos)
    if end >= len(asked):
        return text[: end + len(eos)]  # some templates go on with a line break, which no one needs to learn
    return text.rstrip("\n") + eos


def _chat(turns: tuple[Turn, ...], tokenizer: PreTrainedTokenizerBase, ask: bool) -> str:
    if not tokenizer.chat_template:
        raise ConfigError(
            "data.template=chat: this model's tokenizer has no chat template; "
            'give a plain one: data.template="{instruction}\\n{input}\\n"'
        )
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=ask, tokenize=False))
    except Exception as error:  # jinja raises what the template's author wrote
        raise ConfigError(f"data.template=chat: this model's chat template refuses a record: {error}") from error


def system_note(conversations: list[Conversation], tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> str | None:
    """What becomes of the records' system turns where the model's format has no place for them; None if it has.

    Seen from what the template renders: the same as if the system's text had been left out, or typed in the question.
    """
    count = sum(bool(turns) and turns[0].role == "system" for turns in (c.turns for c in conversations))
    if not count or data.template != "chat":
        return None

    def shown(question: str, *ahead: Turn) -> str:
        return _chat((*ahead, Turn("user", question)), tokenizer, ask=True)

    told = shown("QUESTION", Turn("system", "SYSTEM"))
    if told == shown("QUESTION"):
        place = "it is left out"
    elif told in [shown(f"SYSTEM{between}QUESTION") for between in ("\n", "\n\n", " ", "")]:
        place = "it stands ahead of the first question"
    else:
        return None
    have = "1 record has" if count == 1 else f"{count:,} records have"
    return f"{have} a system turn, for which this model's format has no place: {place}"


def tokens(pieces: list[Piece], tokenizer: PreTrainedTokenizerBase) -> Example:
    """Tokens and labels of rendered pieces."""
    ids = special_tokens.of(tokenizer).encode
    together = ids("".join(piece.text for piece in pieces))
    heads, text = [], ""
    for piece in pieces[:-1]:
        text += piece.text
        heads.append(ids(text))
    if all(together[: len(head)] == head for head in heads):
        ends = [*map(len, heads), len(together)]
    else:
        parts = [ids(piece.text) for piece in pieces]
        together = [token for part in parts for token in part]
        ends = list(accumulate(map(len, parts)))
    labels, start = list(together), 0
    for piece, end in zip(pieces, ends, strict=True):
        if not piece.trained:
            labels[start:end] = [IGNORE] * (end - start)
        if piece.ends:
            labels[start] = int(tokenizer.eos_token_id)
        start = end
    if labels:
        labels[0] = IGNORE  # nothing comes before the first token, so nothing predicts it
    return {"input_ids": together, "labels": labels}


def truncate(example: Example, max_length: int) -> tuple[Example, Truncation]:
    """Fit an example into ``max_length`` tokens without losing its last answer.

    What leads to the last answer gives way first, from its middle (its ends hold the instruction and the turn markers),
    down to a quarter of the length; only then does the answer lose its end.
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
    """The tokens that this tokenizer puts ahead of plain text, if it does; a chat template has its own."""
    known = special_tokens.of(tokenizer).tokens
    return "".join(known[token].content for token in takewhile(known.__contains__, tokenizer("a")["input_ids"]))
