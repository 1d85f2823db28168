"""The name of a special token in a record is encoded as text; those in the template are encoded as special tokens."""

import random
import re
from itertools import pairwise
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer

from conftest import ROOT, config_of
from hydraft.config.data import DataConfig
from hydraft.data import special_tokens
from hydraft.data.labels import IGNORE
from hydraft.data.records import Conversation, Turn, ask
from hydraft.data.tokenize import encode_one, prompt_ids
from hydraft.errors import ConfigError
from published import fuzz, native_tokenizer, sentencepiece_model

TYPED = (
    "</s>",
    "<s>",
    "<unk>",
    "[gMASK]",
    "<sop>",
    "[MASK]",
    "<|im_end|>",
    "<|im_start|>",
    "<|pad|>",
    "<reserved_192>",
)
FAMILIES = ("tiny", "chatglm2", "baichuan")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tokenizers")
    found = {family: native_tokenizer(family, folder / family) for family in FAMILIES[1:]}
    return found | {"tiny": AutoTokenizer.from_pretrained(ROOT / "src/hydraft/models/tiny")}


@pytest.fixture(params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Any]) -> Any:
    return tokenizers[request.param]


@pytest.fixture(scope="module")
def data() -> DataConfig:
    return config_of().data


def specials(tokenizer: Any) -> dict[str, int]:
    return {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def texts(seed: int, typed: bool) -> list[str]:
    """Texts with or without names of special tokens."""
    generator = random.Random(seed)
    plain = [text for text in fuzz(1500, seed) if text.strip() and not any(name in text for name in TYPED)]
    if not typed:
        return plain
    return ["".join((text[: len(text) // 2], *generator.choices(TYPED, k=3), text[len(text) // 2 :])) for text in plain]


def test_an_ordinary_record_has_the_ids_of_its_rendered_string(tokenizer: Any, data: DataConfig) -> None:
    for question, answer in pairwise(texts(1, typed=False)[:300]):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        whole = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
        (example,) = encode_one(Conversation((Turn("user", question), Turn("assistant", answer))), tokenizer, data)
        length = len(example["input_ids"])
        assert example["input_ids"] == whole[:length]
        assert tokenizer.decode(whole[length:]).strip() == ""


def test_aliases_do_not_change_ids(tokenizer: Any) -> None:
    """A string with special tokens of a template has the same ids with the copied tokenizer."""
    known, names = special_tokens.of(tokenizer), list(specials(tokenizer))
    generator = random.Random(2)
    for text in texts(2, typed=False)[:500]:
        half = len(text) // 2
        rendered = "".join((generator.choice(names), text[:half], *generator.choices(names, k=2), text[half:]))
        copied, originals = known._with_aliases
        aliased = known.names.sub(lambda name: special_tokens._alias(known.ids_of[name[0]]), rendered)
        found = [originals.get(token, token) for token in copied.encode(aliased, add_special_tokens=False).ids]
        assert found == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_a_typed_name_gives_no_special_token(tokenizer: Any, data: DataConfig) -> None:
    """The same special tokens in the same order as without the names, and every text is decoded unchanged."""
    known = set(specials(tokenizer).values())
    (plain,) = encode_one(Conversation((Turn("user", "问"), Turn("assistant", "答"))), tokenizer, data)
    expected = [token for token in plain["input_ids"] if token in known]
    for question, answer in pairwise(texts(3, typed=True)[:300]):
        chat = Conversation((Turn("user", question), Turn("assistant", answer)))
        (example,) = encode_one(chat, tokenizer, data)
        ids, labels = example["input_ids"], example["labels"]
        assert [token for token in ids if token in known] == expected
        assert labels.count(tokenizer.eos_token_id) == 1 and labels[-1] == tokenizer.eos_token_id
        labelled = tokenizer.decode([label for label in labels if label != IGNORE][:-1])
        assert labelled.replace("\ufffd", "") == answer.replace("\ufffd", "") or "▁" in answer
        prompt = prompt_ids(chat, tokenizer, data)
        assert ids[: len(prompt)] == prompt == prompt_ids(ask(question), tokenizer, data)


def test_a_typed_name_is_encoded_as_the_published_tokenizer_does(tokenizers: Any, data: DataConfig) -> None:
    """SentencePiece does not know ChatGLM2's special tokens, so it encodes a whole chat as text, in one string."""
    tokenizer = tokenizers["chatglm2"]
    spoken = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    start = tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    for question, answer in pairwise(texts(4, typed=True)[:300]):
        (example,) = encode_one(Conversation((Turn("user", question), Turn("assistant", answer))), tokenizer, data)
        prompt = spoken.encode(f"[Round 1]\n\n问：{question}\n\n答：")
        assert example["input_ids"] == [*start, *prompt, *spoken.encode(answer), 2]


def test_a_typed_name_between_special_tokens_is_encoded_separately(tokenizers: Any, data: DataConfig) -> None:
    tokenizer = tokenizers["tiny"]
    names = re.compile("(" + "|".join(map(re.escape, specials(tokenizer))) + ")")
    for question in texts(5, typed=True)[:300]:
        parts = names.split(tokenizer.apply_chat_template([{"role": "user", "content": "QQQ"}], add_generation_prompt=True, tokenize=False))  # fmt: skip
        expected = []
        for part in parts:
            text = part.replace("QQQ", question)
            known = names.fullmatch(part)
            split = tokenizer(text, add_special_tokens=False, split_special_tokens=not known)
            expected += split["input_ids"]
        assert prompt_ids(ask(question), tokenizer, data) == expected


def test_plain_text_and_a_plain_template_are_text_too(tokenizer: Any) -> None:
    settings = config_of("data.template='<|im_start|>{instruction}</s>{input}：'").data
    known, eos = specials(tokenizer), tokenizer.eos_token_id
    start = [token for token in tokenizer("a")["input_ids"] if token in known.values()]
    turns = (Turn("user", "".join(TYPED), "</s>"), Turn("assistant", "<|im_end|>[MASK]</s>"))
    (example,) = encode_one(Conversation(turns), tokenizer, settings)
    own = [known[name] for name in ("<|im_start|>", "</s>") if name in known]
    assert [token for token in example["input_ids"] if token in known.values()] == [*start, *own, eos]
    (example,) = encode_one(Conversation(plain="".join(TYPED)), tokenizer, settings)
    assert [token for token in example["input_ids"] if token in known.values()] == [*start, eos]
    assert example["input_ids"][: len(start)] == start


@pytest.mark.parametrize("template", ["{instruction}{input}", "{input}{instruction}"])
def test_two_halves_of_a_name_are_text(tokenizer: Any, template: str) -> None:
    settings = config_of(f"data.template='{template}：'").data
    known = specials(tokenizer)
    for name in known:
        halves = (name[:2], name[2:]) if template.startswith("{instruction") else (name[2:], name[:2])
        ids = prompt_ids(Conversation((Turn("user", *halves), Turn("assistant", ""))), tokenizer, settings)
        assert ids == [
            *(token for token in tokenizer("a")["input_ids"] if token in known.values()),
            *tokenizer(f"{name}：", add_special_tokens=False, split_special_tokens=True)["input_ids"],
        ]


def test_a_template_may_still_split_a_text(tokenizers: Any, data: DataConfig) -> None:
    """As in Qwen3's template, which removes the reasoning from earlier answers and strips the last."""
    tokenizer = tokenizers["tiny"]
    template = tokenizer.chat_template
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1].strip() }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    try:
        (example,) = encode_one(
            Conversation((Turn("user", " 问<|im_end|> "), Turn("assistant", "想</think>\n<|im_end|>答\n"))),
            tokenizer,
            data,
        )
    finally:
        tokenizer.chat_template = template
    labelled = [label for label in example["labels"] if label != IGNORE]
    assert tokenizer.decode(labelled[:-1]) == "<|im_end|>答" and labelled.count(tokenizer.eos_token_id) == 1
    assert "user\n问<|im_end|><|im_end|>" in tokenizer.decode(example["input_ids"])


def test_a_slow_tokenizer_refuses_such_a_record(data: DataConfig) -> None:
    class Slow:
        added_tokens_decoder = AutoTokenizer.from_pretrained(ROOT / "src/hydraft/models/tiny").added_tokens_decoder

    known = special_tokens.SpecialTokens(Slow())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"contains the name of a special token \(one of .*slow tokenizer"):
        known.encode(known.hide(Conversation(plain="<|im_end|>")).plain or "")
