"""Special tokens come from the template alone: in a record's own text, the same characters are text.

A template renders to one string, in which a typed ``</s>`` would look like the template's own. So what reads as a special
token in a text is replaced by a stand-in before rendering; the names that are in the string afterwards are the template's.
A twin of the tokenizer, in which every special token goes by an alias, then tokenises the string with the typed names back
in their places. It is still one string: merges, spaces and prefixes are those of any other record.

Only tokens that are marked special are meant. Others with a name of their own (Baichuan's spare pieces) are what the
published tokenizers give for their text.
"""

import copy
import re
import uuid
from dataclasses import replace
from functools import cached_property, lru_cache

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from hydraft.data.formats import Conversation, Turn
from hydraft.errors import ConfigError

SECRET = uuid.uuid4().hex
"""In every stand-in and alias. Drawn anew for each process, so that no text can hold one; no id depends on it."""
STAND_IN = re.compile(rf"{SECRET}typed(\d*)\.")
NOTHING = f"{SECRET}typed."
"""Stands in for no text at all: it keeps its two sides from being read as one name."""


class Special:
    """The special tokens of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read which tokens are special."""
        self.tokenizer = tokenizer
        self.tokens = {i: token for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.ids_of = {token.content: i for i, token in self.tokens.items()}
        longest_first = sorted(self.ids_of, key=len, reverse=True)
        self.names = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        """Any special token's name; of two that fit, the longer, as the tokenizer itself chooses."""

    def hide(self, conversation: Conversation) -> Conversation:
        """The conversation with a stand-in for every special token's name in its texts."""

        def hidden(text: str) -> str:
            return self.names.sub(lambda name: f"{SECRET}typed{self.ids_of[name[0]]}.", text)

        def said(turn: Turn) -> Turn:
            content, more = hidden(turn.content), hidden(turn.input)
            if self.names.search(content + more) or self.names.search(more + content):  # half a name in each
                content = NOTHING + content + NOTHING
            return replace(turn, content=content, input=more)

        plain = None if conversation.plain is None else hidden(conversation.plain)
        return replace(conversation, plain=plain, turns=tuple(map(said, conversation.turns)))

    def encode(self, text: str) -> list[int]:
        """The ids of a rendered text, with stand-ins in it or not.

        Raises:
            ConfigError: it has some, and the tokenizer is none of the ``tokenizers`` library.
        """
        if SECRET not in text:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        text = self.names.sub(lambda name: _alias(self.ids_of[name[0]]), text)
        text = STAND_IN.sub(lambda number: number[1] and self.tokens[int(number[1])].content, text)
        twin, meant = self._twin
        return [meant.get(token, token) for token in twin.encode(text, add_special_tokens=False).ids]

    @cached_property
    def _twin(self) -> tuple[Tokenizer, dict[int, int]]:
        """The tokenizer that knows special tokens by their aliases only, and which token each alias is."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError(
                f"model.path: a record's text names a special token (one of {', '.join(self.ids_of)}), and this model's "
                "slow tokenizer cannot tell that from the token itself; take it out of the record"
            )
        twin = copy.deepcopy(backend)
        twin.encode_special_tokens = True  # that is: encode their names as text
        twin.add_tokens(
            [
                AddedToken(
                    _alias(i), special=False, single_word=token.single_word, lstrip=token.lstrip, rstrip=token.rstrip,
                    normalized=token.normalized,
                )
                for i, token in self.tokens.items()
            ]
        )  # fmt: skip
        return twin, {twin.token_to_id(_alias(i)): i for i in self.tokens}


def _alias(token: int) -> str:
    return f"{SECRET}alias{token}."


@lru_cache(maxsize=4)
def of(tokenizer: PreTrainedTokenizerBase) -> Special:
    """The special tokens of ``tokenizer``; which they are is read once."""
    return Special(tokenizer)
