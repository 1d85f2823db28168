"""Encodes special tokens of the chat template only: the same characters in the text of a record are encoded as text.

A template renders to one string, in which ``</s>`` from a record would look like that of the template. So the names of special
tokens in a record are replaced by placeholders before rendering; the names in the rendered string are then the template's. A copy of
the tokenizer, in which every special token has an alias, encodes the string with the aliases and the original text of the record. It
is still one string, so merges, spaces and prefixes are the same as in any other record.

The marks around thoughts (``<think>``) in a text have placeholders too, so that no template takes text for thoughts; they are encoded
as the tokenizer encodes them.

This applies to tokens that are marked special. Other added tokens (Baichuan's reserved pieces) are encoded as the published
tokenizer encodes them.
"""

import copy
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from hydraft.data.records import Conversation, Turn
from hydraft.data.thinking import MARKS
from hydraft.errors import ConfigError

ALL_MARKS = tuple(mark for pair in MARKS for mark in pair)
REMEMBERED = 1 << 21
"""Characters of texts whose ids are remembered."""
SECRET = uuid.uuid4().hex
"""Part of every placeholder and alias. It is random in each process, so that no text contains it; no id depends on it."""
MARK = re.compile("|".join(map(re.escape, ALL_MARKS)))
MARK_PLACEHOLDER = re.compile(rf"{SECRET}mark(\d+)\.")
PLACEHOLDER = re.compile(rf"{SECRET}typed(\d*)\.")
EMPTY = f"{SECRET}typed."
"""A placeholder of empty text: it keeps two adjacent texts from forming the name of a special token."""


class SpecialTokens:
    """The special tokens of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read which tokens are special."""
        self.tokenizer = tokenizer
        self.tokens = {i: token for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.ids_of = {token.content: i for i, token in self.tokens.items()}
        self.answer_ends = frozenset(getattr(tokenizer, "init_kwargs", {}).get("answer_ends", ()))
        """Names of those that end an answer besides end-of-sequence (``PublishedFamily.tokenizer``)."""
        begins = getattr(tokenizer, "init_kwargs", {}).get("answer_begins")
        self.header: list[int] = list(tokenizer(begins, add_special_tokens=False)["input_ids"]) if begins else []
        """What a model writes between the role's token and the text of an answer (ChatGLM3's line break)."""
        longest_first = sorted(self.ids_of, key=len, reverse=True)
        self.names = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        """Matches the name of any special token, the longest first, as the tokenizer does."""
        self.parts: dict[str, list[int]] = {}
        self.remembered = 0
        self.splitting: dict[str, bool] = {}

    def answer(self, ids: list[int]) -> list[int]:
        """The tokens of an answer without its ``header``."""
        return ids[len(self.header) :] if self.header and ids[: len(self.header)] == self.header else ids

    def label(self, token: int, end: int) -> int:
        """The label of the ``token`` that follows an answer without an end: itself if it ends answers, else ``end``.

        ChatGLM3 is trained to end an answer with the next turn's ``<|user|>`` or ``<|observation|>`` (finetune_demo).
        """
        known = self.tokens.get(token)
        return token if known is not None and known.content in self.answer_ends else end

    def hide(self, conversation: Conversation) -> Conversation:
        """The conversation with a placeholder for every name of a special token, and for marks of thoughts, in its texts."""
        return replace(
            conversation,
            plain=None if conversation.plain is None else self._hidden(conversation.plain),
            turns=tuple(map(self._with_placeholders, conversation.turns)),
            tools=tuple(map(self._hidden, conversation.tools)),
        )

    def _with_placeholders(self, turn: Turn) -> Turn:
        content, more = self._hidden(turn.content), self._hidden(turn.input)
        if self.names.search(content + more) or self.names.search(more + content):  # a name across both
            content = EMPTY + content + EMPTY
        calls = tuple(map(self._hidden, turn.tool_calls))
        hidden = {key: self._hidden(getattr(turn, key)) for key in ("reasoning", "tool_call_id", "name")}
        return replace(turn, content=content, input=more, tool_calls=calls, **hidden)

    def _hidden(self, value: Any) -> Any:
        """A text, or a JSON value with texts in it, with placeholders."""
        if isinstance(value, str):
            text = self.names.sub(lambda name: f"{SECRET}typed{self.ids_of[name[0]]}.", value)
            return MARK.sub(lambda mark: f"{SECRET}mark{ALL_MARKS.index(mark[0])}.", text)
        if isinstance(value, Mapping):
            return {self._hidden(key): self._hidden(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._hidden(item) for item in value]
        return value

    def shown(self, text: str) -> str:
        """A rendered text with what its placeholders stand for."""
        text = MARK_PLACEHOLDER.sub(lambda number: ALL_MARKS[int(number[1])], text)
        return PLACEHOLDER.sub(lambda number: number[1] and self.tokens[int(number[1])].content, text)

    def encode(self, text: str) -> list[int]:
        """The ids of a rendered text, with or without placeholders.

        Raises:
            ConfigError: it has placeholders, and the tokenizer is not based on the ``tokenizers`` library.
        """
        text = MARK_PLACEHOLDER.sub(lambda number: ALL_MARKS[int(number[1])], text)
        if SECRET not in text:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        text = self.names.sub(lambda name: _alias(self.ids_of[name[0]]), text)
        text = PLACEHOLDER.sub(lambda number: number[1] and self.tokens[int(number[1])].content, text)
        copied, originals = self._with_aliases
        return [originals.get(token, token) for token in copied.encode(text, add_special_tokens=False).ids]

    def encode_with_ends(self, text: str, bounds: Sequence[int]) -> tuple[list[int], list[int] | None]:
        """The ids of a rendered text, and how many of them come before each of ``bounds``, which ascend.

        The numbers are None if a bound is inside a token, or if the text up to it has other ids on its own. The tokenizer splits a text
        at special tokens before anything else, so what is between two of them is encoded once, and this is linear in the text.
        """
        starts = [0, *(name.start() for name in self.names.finditer(text) if name.start() and self._splits(name[0]))]
        ids: list[int] = []
        ends: list[int] = []
        aligned = True
        for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
            part = self._part(text[start:end])
            while len(ends) < len(bounds) and bounds[len(ends)] <= end:
                before = self._part(text[start : bounds[len(ends)]])
                aligned = aligned and part[: len(before)] == before
                ends.append(len(ids) + len(before))
            ids += part
        return ids, ends if aligned else None

    def _part(self, text: str) -> list[int]:
        """``encode``, remembered for the parts that several examples of a conversation share."""
        found = self.parts.get(text)
        if found is None:
            found = self.encode(text)
            self.remembered += len(text)
            if self.remembered > REMEMBERED:
                self.parts, self.remembered = {}, len(text)
            self.parts[text] = found
        return found

    def _splits(self, name: str) -> bool:
        """Whether the tokenizer encodes what is before and after this special token independently."""
        if name not in self.splitting:
            token = self.tokens[self.ids_of[name]]
            parts = ("a b 好  ", f"{name}  c\n ", f"{name}好 d")
            plain = not (token.lstrip or token.normalized or token.single_word)
            known = plain and getattr(self.tokenizer, "backend_tokenizer", None) is not None
            self.splitting[name] = known and self.encode("".join(parts)) == [
                i for part in parts for i in self.encode(part)
            ]
        return self.splitting[name]

    @cached_property
    def _with_aliases(self) -> tuple[Tokenizer, dict[int, int]]:
        """A copy of the tokenizer in which special tokens only have their aliases, and the special token of each alias."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(
                f"model.path: the text of a record contains the name of a special token (one of {', '.join(self.ids_of)}), and this "
                "model's slow tokenizer cannot encode it as text; remove it from the record"
            )
        copied = copy.deepcopy(backend)
        copied.encode_special_tokens = True  # encode their names as text
        copied.add_tokens(
            [
                AddedToken(
                    _alias(i), special=False, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip,
                    normalized=token.normalized,
                )
                for i, token in self.tokens.items()
            ]
        )  # fmt: skip
        return copied, {copied.token_to_id(_alias(i)): i for i in self.tokens}


def _alias(token: int) -> str:
    return f"{SECRET}alias{token}."


@lru_cache(maxsize=4)
def of(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """The special tokens of ``tokenizer``, read once."""
    return SpecialTokens(tokenizer)
