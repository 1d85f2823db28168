"""Encoding is linear in the turns of a conversation, and gives the ids that encoding each prefix on its own gives."""

import time
from itertools import accumulate
from typing import Any

import pytest
from templates import templated

from conftest import SCALE, config_of
from hydraft.data import rendering, special_tokens
from hydraft.data.labels import IGNORE
from hydraft.data.records import Conversation, Turn
from hydraft.data.rendering import Piece, Rendering
from hydraft.data.tokenize import encode_one, tokens
from published import fuzz, native_tokenizer

DATA = config_of("data.thinking=off", "data.max_length=1000000").data
TEXTS = [text for text in fuzz(400, seed=5) if text.strip()]
NAMES = ("chatml", "llama_3_1", "mistral_v0_3", "phi_3", "granite_3_2", "gemma_2")


def conversation(rounds: int, start: int) -> Conversation:
    texts = [TEXTS[(start + index) % len(TEXTS)] for index in range(2 * rounds)]
    if start % 2:
        texts = [f"{text[:5]}<|im_end|></s>{text[5:]}" for text in texts]
    return Conversation(tuple(Turn(("user", "assistant")[index % 2], text) for index, text in enumerate(texts)))


def prefix_by_prefix(pieces: list[Piece], tokenizer: Any) -> tuple[list[int], list[int]]:
    """The rule as it is told: one string if every boundary of pieces is one of tokens, otherwise piece by piece."""
    ids = special_tokens.of(tokenizer).encode
    whole = ids("".join(piece.text for piece in pieces))
    prefixes = [ids(text) for text in accumulate(piece.text for piece in pieces)]
    if any(whole[: len(prefix)] != prefix for prefix in prefixes):
        parts = [ids(piece.text) for piece in pieces]
        prefixes = list(accumulate(parts))
        whole = prefixes[-1]
    labels, start = [], 0
    for piece, prefix in zip(pieces, prefixes, strict=True):
        labels += whole[start : len(prefix)] if piece.trained else [IGNORE] * (len(prefix) - start)
        start = len(prefix)
    return whole, [IGNORE, *labels[1:]]


@pytest.mark.parametrize("name", [*NAMES, "baichuan"])
def test_the_ids_are_those_of_every_prefix(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = native_tokenizer(name, tmp_path / name) if name == "baichuan" else templated(name)
    for start in range(0, 40, 5):
        chat = special_tokens.of(tokenizer).hide(conversation(rendering.LONG, start))
        found = rendering.render(Rendering(chat, tokenizer, DATA))
        with monkeypatch.context() as context:
            context.setattr(rendering, "LONG", 10**6)  # rendered up to every answer
            assert rendering.render(Rendering(chat, tokenizer, DATA)) == found
        assert found is not None
        example, (ids, labels) = tokens(found, tokenizer), prefix_by_prefix(found, tokenizer)
        assert example["input_ids"] == ids
        assert name == "baichuan" or example["labels"] == labels  # Baichuan's answers end in the next turn's token


def test_ten_times_the_turns_take_ten_times_as_long() -> None:
    """330 turns took 18 s, and ten times as many would have taken half an hour."""
    tokenizer = templated("chatml")
    encode_one(conversation(8, 0), tokenizer, DATA)
    began = time.perf_counter()
    (example,) = encode_one(conversation(1650, 0), tokenizer, DATA)
    assert time.perf_counter() - began < 8 * SCALE
    assert sum(label == tokenizer.eos_token_id for label in example["labels"]) == 1650
