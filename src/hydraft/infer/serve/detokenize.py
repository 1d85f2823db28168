"""Incremental detokenization: only complete characters, and no text from a stop sequence on."""

from collections.abc import Collection

from transformers import PreTrainedTokenizerBase

from hydraft.data import special_tokens

LONGEST = 8
"""Tokens after which a replacement character is final: a UTF-8 character has at most 4 bytes, and a token at least one."""


class StreamDecoder:
    """Decodes an answer token by token; the parts add up to what the tokenizer decodes from all tokens at once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, shown: Collection[str] = ()) -> None:
        """``tokenizer`` is used for decoding only. ``shown``: special tokens that are part of the text."""
        self.tokenizer = tokenizer
        self.special = set(tokenizer.all_special_ids)
        if shown:
            self.special -= {i for i, token in tokenizer.added_tokens_decoder.items() if token.content in shown}
        self.header = special_tokens.of(tokenizer).header
        self.begun: list[int] | None = [] if self.header else None
        """The first tokens, as long as they may be the header, which is no part of the text."""
        self.ids: list[int] = []
        self.start, self.sent = 0, 0
        """Where decoding starts, since spaces and characters depend on the tokens before, and the number of tokens already returned."""

    def add(self, token: int) -> str:
        """The text that this token completes; empty in the middle of a character."""
        if token in self.special:
            return ""
        if self.begun is not None:
            self.begun.append(token)
            if self.begun == self.header[: len(self.begun)] and len(self.begun) < len(self.header):
                return ""
            begun, self.begun = self.begun, None
            return "" if begun == self.header else "".join(map(self.add, begun))
        self.ids.append(token)
        piece = self._open()
        if piece.endswith("�") and len(self.ids) - self.sent < LONGEST:
            return ""
        self.start, self.sent = self.sent, len(self.ids)
        return piece

    def end(self) -> str:
        """The rest of the text."""
        begun, self.begun = self.begun or [], None
        piece = "".join(map(self.add, begun)) + self._open()
        self.start = self.sent = len(self.ids)
        return piece

    def _open(self) -> str:
        before = self._decode(self.ids[self.start : self.sent])
        return self._decode(self.ids[self.start :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


class StopFilter:
    """Passes text on up to the first stop sequence, which may arrive in several parts."""

    def __init__(self, stops: list[str]) -> None:
        """``stops``: the stop sequences, which are not part of the answer."""
        self.stops = stops
        self.held = ""
        self.found = False

    def add(self, piece: str) -> str:
        """The text that can be sent now; the possible start of a stop sequence is held back."""
        text = self.held + piece
        found = [at for at in map(text.find, self.stops) if at >= 0]
        if found:
            self.found, self.held = True, ""
            return text[: min(found)]
        length = max((_prefix_length(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - length :]
        return text[: len(text) - length]

    def end(self) -> str:
        """The text that was held back, since it was no stop sequence."""
        text, self.held = self.held, ""
        return text


def _prefix_length(text: str, stop: str) -> int:
    """Characters at the end of ``text`` with which ``stop`` begins."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
