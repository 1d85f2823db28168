"""Renders conversations as pieces of text, each trained or not, with the chat template or a plain one.

Only answers are trained: their thoughts, their text and calls of tools, and the token that ends them. Empty thoughts, which some
templates put before an answer that has none, are part of the prompt.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from hydraft.config.choices import Thinking, TrainOn
from hydraft.config.data import DataConfig
from hydraft.config.template import fill
from hydraft.data import chat_template, special_tokens, thinking, tool_calls
from hydraft.data.chat_template import USE_PLAIN
from hydraft.data.records import Conversation, Turn
from hydraft.data.thinking import Block
from hydraft.errors import ConfigError

LONG = 8
"""Answers from which on a conversation is rendered once."""


class Piece(NamedTuple):
    """A part of a rendered conversation."""

    text: str
    trained: bool
    ends: int | None = None
    """The token that ends the trained answer before this piece, if the template does not render it there. It is then the label of the
    first token of this piece, so that the answer learns to end there."""


class Rendering:
    """Renders one conversation."""

    def __init__(self, chat: Conversation, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> None:
        """``chat``: with the names of special tokens hidden (``special_tokens.hide``).

        Raises:
            ConfigError: the template has no place for its tools.
        """
        self.chat = chat
        self.data = data
        self.special = special_tokens.of(tokenizer)
        self.eos = str(tokenizer.eos_token)
        self.begin = begin(tokenizer)
        self.wanted = thinking.wanted(chat, data)
        self.template = chat_template.of(tokenizer, bool(chat.tools)) if data.template == "chat" else None
        if self.template is not None:
            self.template.check_tools(chat)
        elif chat.tools or any(turn.tool_calls or turn.role == "tool" for turn in chat.turns):
            tool_calls.refuse(chat, "tools", "a plain template")

    def thinks(self, answer: Turn) -> Thinking:
        """Whether an answer is trained with thoughts: not if it has none."""
        return Thinking.on if answer.reasoning and self.wanted is not Thinking.off else Thinking.off

    def until(self, index: int) -> tuple[str, str]:
        """The text before the answer at ``index``, and with it."""
        turns = self.chat.turns[: index + 1]
        thinks = self.thinks(turns[-1])
        prompt = self.prompt(turns[:-1], thinks)
        return prompt, self.answered(turns, prompt, thinks)

    def prompt(self, turns: Sequence[Turn], thinks: Thinking) -> str:
        """The text before the assistant's next answer."""
        if self.template is None:
            return self._plain(turns)
        text = self.template.render(turns, thinks, True, self.chat)
        if thinks is not Thinking.off:
            return text
        _, begun, closed = self.template.block.tail(text)
        if begun:
            return text + self.template.block.closed(text)
        return text if closed else text + self.template.empty

    def answered(self, turns: Sequence[Turn], prompt: str, thinks: Thinking) -> str:
        """``prompt`` and the answer with the token that ends it.

        Raises:
            ConfigError: the template does not render the answer after the prompt.
        """
        thoughts = turns[-1].reasoning.strip() if thinks is Thinking.on else ""
        if self.template is None:
            block = Block()
            text = prompt + (block.around(thoughts, False) + block.after if thoughts else "")
            return text + turns[-1].content + self.eos
        block = self.template.block
        head, begun, _ = block.tail(prompt)
        whole = self._closed(self.template.render(turns, thinks, False, self.chat), len(head))
        if whole.startswith(prompt) and thoughts in whole[len(prompt) :]:
            return whole
        alone = (chat_template.ASKED[0], turns[-1])
        if not whole.startswith(head) and turns[-2:-1] != alone[:1]:
            before = self.prompt(alone[:1], thinks)  # Mistral's template moves the system turn to the last question
            return prompt + self.answered(alone, before, thinks)[len(before) :]
        if not whole.startswith(head):
            raise ConfigError(
                "data.template=chat: in this model's chat template the answer does not follow the generation prompt; "
                + USE_PLAIN
            )
        _, closed, body = whole[len(head) :].rpartition(block.closing)
        if thoughts:
            return prompt + block.around(thoughts, begun) + (body if closed else block.after + body)
        return prompt + (body.lstrip("\n") if closed and prompt.endswith("\n") else body)

    def _closed(self, text: str, start: int) -> str:
        """A rendered conversation up to the token that ends its last answer, which is added if the template has none.

        ``start``: where the answer begins, at the earliest.
        """
        assert self.template is not None
        end = text.rfind(self.template.closing) if self.template.closing else -1
        if end >= start:
            return text[
                : end + len(self.template.closing)
            ]  # some templates add a line break, which need not be trained
        if len(bare := text.rstrip()) > start and self.last_special(bare):
            return bare
        return text.rstrip("\n") + self.eos

    def last_special(self, text: str) -> str:
        """The special token at the end of a text; empty if there is none."""
        ends = (name for name in self.special.ids_of if text.endswith(name))
        return max(ends, key=len, default="")

    def _plain(self, turns: Sequence[Turn]) -> str:
        template = self.data.template
        text = self.begin
        for turn in turns:
            if turn.role == "user":
                text += fill(template, turn.content, turn.input)
            else:
                text += turn.content + ("\n" if turn.role == "system" else self.eos)
        return text


def render(rendering: Rendering) -> list[Piece] | None:
    """The pieces of a conversation; None if the rendering of more turns does not start with that of fewer turns.

    Some templates (Baichuan2's) end only the last answer with a special token; after an earlier answer comes the special token of the
    next turn. That token is then the input and the token that ends answers its label, which is how Baichuan2 was trained.
    """
    if (found := _found(rendering)) is not None:
        return found
    pieces: list[Piece] = []
    turns, text = rendering.chat.turns, ""
    special = rendering.special
    for index in answers_of(turns):
        prompt, answered = rendering.until(index)
        ends = None
        if not prompt.startswith(text):
            closing = rendering.last_special(text)
            unclosed = text.removesuffix(closing)
            if not prompt.startswith(unclosed) or not special.names.match(prompt, len(unclosed)):
                return None
            pieces[-1] = pieces[-1]._replace(text=pieces[-1].text.removesuffix(closing))
            ends, text = (special.ids_of.get(closing) if pieces[-1].trained else None), unclosed
        pieces.append(Piece(prompt[len(text) :], False, ends))
        pieces.append(Piece(answered[len(prompt) :], trains(rendering, index)))
        text = answered
    return pieces


def _found(rendering: Rendering) -> list[Piece] | None:
    """The pieces of a long conversation, found in one rendering of it; None if they cannot be, or if it is short.

    Rendering it up to every answer is quadratic in the turns. Here only one answer of each kind is rendered so, and the first and the
    last; the others are between the special tokens of the prompt and the one that ends an answer, which no text of a record has.
    """
    turns, template = rendering.chat.turns, rendering.template
    indices = answers_of(turns)
    if template is None or len(indices) < LONG or template.closing not in rendering.special.ids_of:
        return None
    begins = template.begins
    if not begins or any(rendering.thinks(turns[index]) is Thinking.on for index in indices):
        return None
    whole = rendering.until(indices[-1])[1]
    kinds = {
        (turns[index - 1].role, bool(turns[index].tool_calls), bool(turns[index].content)): index for index in indices
    }
    checked = {indices[0], indices[len(indices) // 2], *kinds.values()}
    pieces: list[Piece] = []
    end = 0
    for index in indices:
        start = whole.find(begins, end) + len(begins)
        stop = whole.find(template.closing, start) + len(template.closing)
        if (
            start < len(begins)
            or stop < start
            or (index in checked and rendering.until(index) != (whole[:start], whole[:stop]))
        ):
            return None
        pieces += [Piece(whole[end:start], False), Piece(whole[start:stop], trains(rendering, index))]
        end = stop
    return pieces if end == len(whole) and whole.count(begins) == len(indices) else None


def answers_of(turns: Sequence[Turn]) -> list[int]:
    """The indices of the assistant's turns."""
    return [index for index, turn in enumerate(turns) if turn.role == "assistant"]


def last_answer(rendering: Rendering, end: int) -> list[Piece]:
    """The pieces of the first ``end`` turns, of which the last answer alone is trained."""
    prompt, answered = rendering.until(end - 1)
    return [Piece(prompt, False), Piece(answered[len(prompt) :], True)]


def trains(rendering: Rendering, index: int) -> bool:
    """Whether the turn at ``index`` is an answer that is trained."""
    turns = rendering.chat.turns
    chosen = rendering.data.train_on is TrainOn.all or index == len(turns) - 1
    return turns[index].role == "assistant" and turns[index].trained and chosen


def begin(tokenizer: PreTrainedTokenizerBase) -> str:
    """The special tokens that the tokenizer adds before plain text; a chat template has its own."""
    known = special_tokens.of(tokenizer).tokens
    return "".join(known[token].content for token in takewhile(known.__contains__, tokenizer("a")["input_ids"]))
