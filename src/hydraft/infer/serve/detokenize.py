"""Tokens to text, piece by piece: never half a character, and nothing from a stop sequence on."""

from transformers import PreTrainedTokenizerBase

LONGEST = 8
"""Tokens after which what still looks like half a character is none: UTF-8 has at most 4 bytes, a token at least one."""


class Pieces:
    """The text of one answer as its tokens come.

    The pieces put together are what the tokenizer decodes from all tokens at once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """``tokenizer`` is only ever used to decode here."""
        self.tokenizer = tokenizer
        self.special = set(tokenizer.all_special_ids)
        self.ids: list[int] = []
        self.start, self.told = 0, 0
        """Tokens that the next piece is decoded after, since spaces and characters depend on them, and tokens already told."""

    def add(self, token: int) -> str:
        """What is certain with this token; empty in the middle of a character."""
        if token in self.special:
            return ""
        self.ids.append(token)
        piece = self._open()
        if piece.endswith("�") and len(self.ids) - self.told < LONGEST:
            return ""
        self.start, self.told = self.told, len(self.ids)
        return piece

    def end(self) -> str:
        """What was held back."""
        piece = self._open()
        self.start = self.told = len(self.ids)
        return piece

    def _open(self) -> str:
        before = self._decode(self.ids[self.start : self.told])
        return self._decode(self.ids[self.start :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


class Stops:
    """Text as it may be shown: up to the first stop sequence, which may come in several pieces."""

    def __init__(self, stops: list[str]) -> None:
        """``stops``: what no one is to see, nor anything after it."""
        self.stops = stops
        self.held = ""
        self.met = False

    def add(self, piece: str) -> str:
        """What can be shown now; what may be the beginning of a stop sequence is held back."""
        text = self.held + piece
        found = [at for at in map(text.find, self.stops) if at >= 0]
        if found:
            self.met, self.held = True, ""
            return text[: min(found)]
        begun = max((_begun(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - begun :]
        return text[: len(text) - begun]

    def end(self) -> str:
        """What was held back and was none."""
        text, self.held = self.held, ""
        return text


def _begun(text: str, stop: str) -> int:
    """Characters at the end of ``text`` that ``stop`` begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
