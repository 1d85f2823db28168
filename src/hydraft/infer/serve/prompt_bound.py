"""The least number of tokens that a text can have, found without tokenising it.

A token of n bytes stands for n bytes of the text. So give each byte of a text the share 1 / (the bytes of the longest token that
contains such a byte): the shares of the bytes of any one token sum to at most 1, and those of a text to no more than its tokens, however
the tokenizer splits it. A prompt that would fit is therefore never refused by it. That holds for a tokenizer that keeps every byte
of the text (byte-level, or with byte fallback, and with steps that only split it); for any other, nothing is known, and the number is 0.
"""

import json
import unicodedata
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

SPLITS = {"ByteLevel", "Split", "Metaspace", "Digits", "Punctuation", "UnicodeScripts"}
"""Pre-tokenizers that keep all of the text, unless their ``behavior`` is to remove what they find."""
SHRINKS = 3
"""NFC makes a text at most so many times shorter (Hangul: three letters of 3 bytes become one of 3; the Kelvin sign becomes K)."""
SPACES = frozenset("".join(filter(str.isspace, map(chr, range(0x10000)))).encode())
"""The bytes of white space."""


class PromptBound:
    """The bound of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read its vocabulary."""
        whole = _whole(tokenizer)
        self._composes = any(part["type"] == "NFC" for part in _parts(whole.get("normalizer")))
        self._shares = np.array(_shares(whole) if _keeps_all(whole) else [0.0] * 256)

    def __call__(self, text: str) -> int:
        """The least number of tokens of ``text``."""
        counts = np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256)
        least = float(counts @ self._shares)
        if self._composes and not text.isascii() and not unicodedata.is_normalized("NFC", text):
            least /= SHRINKS
        return int(least * (1 - 1e-9))  # rounding must not make it one more


def _whole(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer as its tokenizer.json has it; empty if it is not based on the ``tokenizers`` library."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return {} if backend is None else dict(json.loads(backend.to_str()))


def _parts(step: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, which may be a sequence."""
    if not step:
        return []
    inner = step.get("normalizers", step.get("pretokenizers")) if step["type"] == "Sequence" else None
    return [step] if inner is None else [part for each in inner for part in _parts(each)]


def _is_byte_level(whole: dict[str, Any]) -> bool:
    return any(part["type"] == "ByteLevel" for part in _parts(whole.get("pre_tokenizer")))


def _keeps_all(whole: dict[str, Any]) -> bool:
    """Whether every byte of a text is in one of its tokens."""
    if not whole or whole["model"]["type"] not in ("BPE", "Unigram"):
        return False
    kept = all(
        part["type"] in ("NFC", "Prepend")
        or (part["type"] == "Replace" and part["pattern"] == {"String": " "} and part["content"])
        for part in _parts(whole.get("normalizer"))
    )
    split = all(
        part["type"] in SPLITS and str(part.get("behavior")).lower() != "removed"
        for part in _parts(whole.get("pre_tokenizer"))
    )
    fallback = whole["model"].get("byte_fallback") and not {f"<0x{byte:02X}>" for byte in range(256)} - set(
        _names(whole)
    )
    return bool(kept and split and (_is_byte_level(whole) or fallback))


def _names(whole: dict[str, Any]) -> list[str]:
    """The names of the tokens in the vocabulary."""
    vocabulary = whole["model"]["vocab"]
    return list(vocabulary) if isinstance(vocabulary, dict) else [name for name, *_ in vocabulary]


def _shares(whole: dict[str, Any]) -> list[float]:
    """The share of each byte."""
    names, added, level = _names(whole), whole.get("added_tokens", []), _is_byte_level(whole)
    longest = [1] * 256
    for name in [*names, *(token["content"] for token in added)]:
        token = name.encode()
        size, found = len(token), set(token)
        if level and all(c in BYTES for c in name):  # the characters of its name are bytes
            size, found = max(len(name), 1), found | {BYTES[c] for c in name}
        elif "\u2581" in name:  # SentencePiece's name of a space
            found.add(ord(" "))
        for byte in found:
            longest[byte] = max(longest[byte], size)
    lone = (
        {BYTES[name] for name in names if name in BYTES} if level else set(range(256))
    )  # others are left out of the tokens
    shares = [1 / most if byte in lone else 0.0 for byte, most in enumerate(longest)]
    if any(token["lstrip"] or token["rstrip"] for token in added):
        for byte in SPACES:
            shares[byte] = 0.0  # such a token takes in any amount of white space
    return shares


def _byte_names() -> dict[str, int]:
    """The character for each byte in byte-level vocabularies: itself if it is printable, else one from U+0100 on (GPT-2)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


BYTES = _byte_names()
