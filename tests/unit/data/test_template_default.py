"""The saved chat template thinks, or does not, as in training, whoever renders it."""

from typing import Any

import pytest
from templates import PUBLISHED, templated

from hydraft.config.choices import Thinking
from hydraft.config.data import DataConfig
from hydraft.data.records import ask
from hydraft.data.template_default import with_default
from hydraft.data.tokenize import prompt_ids

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Q"}],
    [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}, {"role": "user", "content": "Q2"}],
]


@pytest.mark.parametrize("mode", [Thinking.on, Thinking.off])
@pytest.mark.parametrize("name", PUBLISHED)
def test_other_programs_prompt_as_in_training(name: str, mode: Thinking) -> None:
    tokenizer, published = templated(name), templated(name)
    tokenizer.chat_template = with_default(published, mode)

    def asked(chat: list[dict[str, Any]], **variables: bool) -> str:
        return str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False, **variables))

    expected = published.decode(prompt_ids(ask("Q"), published, DataConfig(template="chat", thinking=mode)))
    assert asked(CHATS[0]) == expected
    for other in (Thinking.on, Thinking.off):  # and it can still be switched
        data = DataConfig(template="chat", thinking=other)
        assert prompt_ids(ask("Q"), tokenizer, data) == prompt_ids(ask("Q"), published, data)
    for chat in CHATS:  # a whole conversation is rendered as before
        whole = [*chat, {"role": "assistant", "content": "A"}]
        before = {"enable_thinking": mode is Thinking.on, "thinking": mode is Thinking.on}
        assert tokenizer.apply_chat_template(whole, tokenize=False) == published.apply_chat_template(
            whole, tokenize=False, **before
        )


def test_a_default_may_be_changed_again() -> None:
    for name in ("qwen3", "deepseek_v3_1", "qwen3_thinking_2507"):
        tokenizer = templated(name)
        published = tokenizer.chat_template
        prompts = []
        for mode in (Thinking.on, Thinking.off, Thinking.on, Thinking.off):
            tokenizer.chat_template = with_default(tokenizer, mode)
            prompts.append(tokenizer.apply_chat_template(CHATS[0], add_generation_prompt=True, tokenize=False))
        assert prompts[0] == prompts[2] != prompts[1] == prompts[3]
        assert with_default(templated(name), Thinking.auto) == published


def test_a_model_that_never_thinks_keeps_its_template() -> None:
    for name in ("chatml", "qwen2_5", "llama_3_1", "gemma_2", "qwen3_instruct_2507"):
        assert with_default(templated(name), Thinking.off) == templated(name).chat_template
