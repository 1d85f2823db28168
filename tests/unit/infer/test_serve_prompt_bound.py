"""The least number of tokens of a text: never more than the tokenizer makes of it."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hydraft.infer.serve.prompt_bound import PromptBound
from hydraft.system.source_tree import TINY

TEXTS = [
    "hello hello world    a",
    "你好你好，世界。今天天气很好",
    "======= ------- \n\n\n",
    "가나다 ∑∑ ▁▁▁▁▁ e\u0301",
    "x" * 40,
]


def trained(model: Any, trainer: Any, normalizer: Any = None, split: Any = None) -> Any:
    """A tokenizer with long tokens, since it is trained on a few texts."""
    made = Tokenizer(model)
    made.normalizer, made.pre_tokenizer = normalizer, split
    made.train_from_iterator(TEXTS * 20, trainer)
    made.add_special_tokens([AddedToken("<|end|>"), AddedToken("<mask>", lstrip=True, rstrip=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made)


def byte_level(normalizer: Any = None) -> Any:
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    return trained(models.BPE(), trainer, normalizer, pre_tokenizers.ByteLevel(use_regex=False, add_prefix_space=False))


def with_fallback() -> Any:
    """As Llama 2's."""
    known = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", *known], show_progress=False)
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return trained(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True), trainer, normalizer)


KINDS: dict[str, Callable[[], Any]] = {
    "tiny": lambda: AutoTokenizer.from_pretrained(TINY),
    "byte level": byte_level,
    "NFC": lambda: byte_level(normalizers.NFC()),
    "byte fallback": with_fallback,
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_never_more_than_the_tokens(kind: str) -> None:
    tokenizer = KINDS[kind]()
    bound = PromptBound(tokenizer)
    pieces = st.sampled_from(
        [*TEXTS, *"".join(TEXTS), "<|end|>", "  <mask>     ", " " * 30, "K", "\u1100\u1161\u11a8", "▁", "e\u0301"]
    )

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(
        st.lists(pieces | st.text(max_size=3), max_size=40).map("".join)
        | st.tuples(pieces, st.integers(1, 60)).map(lambda p: p[0] * p[1])
    )
    @example("\u212a" * 100)  # the Kelvin sign, which NFC makes a K
    @example("x" * 400)
    def holds(text: str) -> None:
        assert bound(text) <= len(tokenizer(text)["input_ids"])

    holds()
    assert bound("Zq" * 1000) >= 100  # it says something: the longest token has 40 bytes


def test_a_tokenizer_that_may_drop_text_has_no_bound() -> None:
    spaced = trainers.WordLevelTrainer(show_progress=False, special_tokens=["[UNK]"])
    words = trained(models.WordLevel(unk_token="[UNK]"), spaced, split=pre_tokenizers.Whitespace())
    collapsing = byte_level(normalizers.Replace(Regex(" +"), " "))
    removing = byte_level()
    removing.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(use_regex=False)]
    )
    no_fallback = trained(
        models.BPE(unk_token="<unk>"), trainers.BpeTrainer(special_tokens=["<unk>"], show_progress=False)
    )
    assert [PromptBound(each)("word " * 1000) for each in (words, collapsing, removing, no_fallback)] == [0, 0, 0, 0]
