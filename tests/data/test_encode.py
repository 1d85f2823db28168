"""The right labels: the answer and its end are trained, prompt and padding never, and what is cut is counted."""

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from conftest import ROOT, config_of
from hydraft.config import ConfigError
from hydraft.data.encode import IGNORE, encode, truncate

RECORD = {"instruction": "判断情感", "input": "房间很干净", "output": "正面"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(ROOT / "src/hydraft/models/tiny")  # type: ignore[no-any-return]


def test_prompt_then_answer_is_the_chat_templates_own_text(tokenizer: PreTrainedTokenizerBase) -> None:
    (example,), _ = encode([RECORD], tokenizer, config_of().data)
    chat = [{"role": "user", "content": "判断情感\n房间很干净"}, {"role": "assistant", "content": "正面"}]
    whole = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    length = len(example["input_ids"])
    assert example["input_ids"] == whole[:length]  # the template may add a line break after the end
    assert tokenizer.decode(whole[length:]).strip() == ""


def test_only_the_answer_and_its_end_are_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    (example,), _ = encode([RECORD], tokenizer, config_of().data)
    trained = [label for label in example["labels"] if label != IGNORE]
    assert tokenizer.decode(trained) == "正面" + tokenizer.eos_token
    start = len(example["labels"]) - len(trained)
    assert example["labels"][:start] == [IGNORE] * start
    assert example["labels"][start:] == example["input_ids"][start:]


def test_a_plain_template_and_plain_text(tokenizer: PreTrainedTokenizerBase) -> None:
    data = config_of('data.template="问：{instruction}{input}答："').data
    examples, _ = encode([RECORD, {"text": "一段文字"}], tokenizer, data)
    assert tokenizer.decode(examples[0]["input_ids"]) == "问：判断情感房间很干净答：正面" + tokenizer.eos_token
    assert tokenizer.decode(examples[1]["input_ids"]) == "一段文字" + tokenizer.eos_token
    assert examples[1]["labels"] == [IGNORE, *examples[1]["input_ids"][1:]]  # nothing predicts the first token


def test_a_tokenizer_without_a_chat_template_is_refused_with_the_way_out() -> None:
    bare = AutoTokenizer.from_pretrained(ROOT / "src/hydraft/models/tiny")
    bare.chat_template = None
    with pytest.raises(ConfigError, match=r"data\.template=chat.*data\.template="):
        encode([RECORD], bare, config_of().data)


def test_truncation_takes_the_prompts_middle_first_and_never_the_whole_answer() -> None:
    prompt, answer = list(range(100)), list(range(100, 120))
    kept, whole = truncate(prompt, answer, 60)
    assert whole == answer
    assert kept == prompt[:20] + prompt[80:]
    kept, part = truncate(prompt, list(range(100, 300)), 60)
    assert (kept, part) == (prompt[:8] + prompt[93:], list(range(100, 145)))
    assert truncate(prompt, answer, 120) == (prompt, answer)
    assert truncate([], answer, 16) == ([], answer[:16])


def test_what_was_cut_is_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    long = {"instruction": "问" * 100, "input": "", "output": "答" * 100}
    (whole,), _ = encode([long], tokenizer, config_of("data.max_length=512").data)
    (example,), cut = encode([long], tokenizer, config_of("data.max_length=64").data)
    assert len(example["input_ids"]) == 64
    assert cut.records == 1
    assert cut.prompt_tokens + cut.answer_tokens == len(whole["input_ids"]) - 64
    assert any(label != IGNORE for label in example["labels"])
