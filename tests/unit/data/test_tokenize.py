"""Labels: answers and their ends are trained, prompts and padding are not, and truncation is counted."""

from dataclasses import replace

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from conftest import ROOT, config_of
from hydraft.config.choices import Thinking
from hydraft.config.data import DataConfig
from hydraft.data.labels import IGNORE
from hydraft.data.records import Conversation, Turn, ask
from hydraft.data.tokenize import Piece, encode, encode_one, prompt_ids, tokens, truncate
from hydraft.errors import ConfigError

ONE = Conversation((Turn("user", "判断情感", "房间很干净"), Turn("assistant", "正面")))
TWO = Conversation(
    (
        Turn("system", "你是翻译"),
        Turn("user", "苹果"),
        Turn("assistant", "apple"),
        Turn("user", "茶🍵"),
        Turn("assistant", "tea🫖"),
    )
)
# As in Qwen3's template: only the last answer shows its reasoning.
HIDES_EARLIER_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(ROOT / "src/hydraft/models/tiny")  # type: ignore[no-any-return]


def data(*overrides: str) -> DataConfig:
    return config_of(*overrides).data


def trained_text(example: dict[str, list[int]], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode([label for label in example["labels"] if label != IGNORE]))


@pytest.mark.parametrize("conversation", [ONE, TWO])
def test_the_ids_are_those_of_the_chat_templates_own_text(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase
) -> None:
    (example,), _ = encode([conversation], tokenizer, data())
    messages = [{"role": turn.role, "content": turn.text} for turn in conversation.turns]
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    length = len(example["input_ids"])
    assert example["input_ids"] == whole[:length]  # the template may add a line break after it
    assert tokenizer.decode(whole[length:]).strip() == ""


def test_every_answer_and_its_end_are_trained_or_only_the_last(tokenizer: PreTrainedTokenizerBase) -> None:
    eos = tokenizer.eos_token
    (every,), _ = encode([TWO], tokenizer, data())
    (last,), _ = encode([TWO], tokenizer, data("data.train_on=last"))
    assert trained_text(every, tokenizer) == f"apple{eos}tea🫖{eos}"
    assert trained_text(last, tokenizer) == f"tea🫖{eos}"
    assert all(label in (IGNORE, token) for label, token in zip(every["labels"], every["input_ids"], strict=True))


def test_a_prompt_equals_the_training_example_up_to_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    for template in ("chat", "'问：{instruction}{input}答：'"):
        settings = data(f"data.template={template}")
        (example,), _ = encode([TWO], tokenizer, settings)
        prompt = prompt_ids(TWO, tokenizer, settings)
        assert example["input_ids"][: len(prompt)] == prompt
        assert example["labels"][len(prompt)] != IGNORE
    assert prompt_ids(ask("苹果"), tokenizer, data()) == prompt_ids(
        Conversation((Turn("user", "苹果"), Turn("assistant", "apple"))), tokenizer, data()
    )


def test_a_template_that_changes_earlier_answers_gives_one_example_per_answer(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tokenizer.chat_template = HIDES_EARLIER_REASONING
    eos = tokenizer.eos_token
    examples = encode_one(TWO, tokenizer, data())
    assert [trained_text(example, tokenizer) for example in examples] == [
        f"apple{eos}",
        f"tea🫖{eos}",
    ]
    for example, answer in zip(examples, ("apple", "tea"), strict=True):
        text = tokenizer.decode(example["input_ids"])
        assert text.count("<think></think>") == 1 and f"<think></think>{answer}" in text
    assert tokenizer.decode(prompt_ids(TWO, tokenizer, replace(data(), thinking=Thinking.off))).endswith(
        "<think></think>"
    )
    assert len(encode_one(TWO, tokenizer, data("data.train_on=last"))) == 1


def test_tokens_are_not_merged_across_a_boundary(tokenizer: PreTrainedTokenizerBase) -> None:
    """Generation starts from the prompt's own tokens, so training must do so too."""
    word = next(
        word for word in ("the", "is", "and", "you", "my", "to")
        if len(tokenizer(word, add_special_tokens=False)["input_ids"]) == 1
    )  # fmt: skip
    head, tail = word[0], word[1:]
    example = tokens([Piece(head, False), Piece(tail, True)], tokenizer)
    assert example["input_ids"][:1] == tokenizer(head, add_special_tokens=False)["input_ids"]
    assert trained_text(example, tokenizer) == tail


def test_all_of_a_plain_text_is_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    (example,), _ = encode([Conversation(plain="一段文字")], tokenizer, data())
    assert tokenizer.decode(example["input_ids"]) == "一段文字" + str(tokenizer.eos_token)
    assert example["labels"] == [IGNORE, *example["input_ids"][1:]]  # no token predicts the first one


def test_a_tokenizer_without_a_chat_template_is_refused_with_an_alternative(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"data\.template=chat.*data\.template="):
        encode([ONE], tokenizer, data())


def test_a_template_that_rejects_a_record_is_reported(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
    with pytest.raises(ConfigError, match="no system turns"):
        encode([TWO], tokenizer, data())


def test_truncation_removes_the_prompts_middle_first_and_never_the_whole_answer() -> None:
    def example(prompt: int, answer: int) -> dict[str, list[int]]:
        ids = list(range(prompt + answer))
        return {"input_ids": ids, "labels": [IGNORE] * prompt + ids[prompt:]}

    short, cut = truncate(example(100, 20), 60)  # type: ignore[arg-type]
    assert short["input_ids"] == [*range(20), *range(80, 120)]
    assert (cut.records, cut.prompt_tokens, cut.answer_tokens) == (1, 60, 0)
    short, cut = truncate(example(100, 200), 60)  # type: ignore[arg-type]
    assert short["input_ids"] == [*range(8), *range(93, 145)]
    assert (cut.records, cut.prompt_tokens, cut.answer_tokens) == (1, 85, 155)
    assert truncate(example(10, 20), 30)[0] == example(10, 20)  # type: ignore[arg-type]


def test_truncated_examples_are_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    long = Conversation((Turn("user", "问" * 100), Turn("assistant", "答" * 100)))
    (whole,), _ = encode([long], tokenizer, data("data.max_length=512"))
    (example,), cut = (
        encode([long, ONE], tokenizer, data("data.max_length=64"))[0][:1],
        encode([long, ONE], tokenizer, data("data.max_length=64"))[1],
    )
    assert len(example["input_ids"]) == 64
    assert cut.records == 1
    assert cut.prompt_tokens + cut.answer_tokens == len(whole["input_ids"]) - 64
    assert any(label != IGNORE for label in example["labels"])
