"""Thoughts are shown while they are written, and are no part of an answer, of a history or of a column."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from templates import templated

from hydraft.config.choices import Thinking
from hydraft.config.data import DataConfig
from hydraft.config.infer import InferConfig
from hydraft.data.records import Conversation, Turn
from hydraft.errors import ConfigError
from hydraft.infer import chat as chat_module
from hydraft.infer.batch import workers
from hydraft.infer.batch.records import Record
from hydraft.infer.batch.run import _line
from hydraft.infer.chat import Chat
from hydraft.infer.generate import Stream
from hydraft.infer.load import check_thinking

WRITTEN = "<think>\n想\n</think>\n\n七<|im_end|>"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def streamed(out: io.StringIO, prompt: str, written: str) -> str:
    tokenizer = templated("qwen3")
    stream = Stream(tokenizer, out, tokenizer(prompt)["input_ids"])
    for token in tokenizer(written)["input_ids"]:
        stream.on_finalized_text(tokenizer.decode([token], skip_special_tokens=True))
    return out.getvalue()


@pytest.mark.parametrize(
    ("prompt", "written"), [("assistant\n", "<think>ab</think>cd"), ("assistant\n<think>\n", "ab</think>cd")]
)
def test_thoughts_are_dim_on_a_terminal_only(prompt: str, written: str) -> None:
    shown = streamed(Terminal(), prompt, written)
    assert "\x1b[2m</think>\x1b[22m" in shown and shown.endswith("cd") and shown.startswith("\x1b[2m")
    assert streamed(io.StringIO(), prompt, written) == written


def source(tokenizer: Any) -> Any:
    return SimpleNamespace(tokenizer=tokenizer, data=DataConfig(template="chat", thinking=Thinking.on))


def test_a_chat_keeps_thoughts_for_the_file_and_not_for_the_next_prompt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tokenizer = templated("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace(  # a template that would render them
        "message['content']", "(message.reasoning_content or '') + message['content']"
    )
    prompts: list[str] = []

    def answered(loaded: Any, selected: Any, prompt: list[int], *rest: Any) -> list[int]:
        prompts.append(tokenizer.decode(prompt))
        return list(tokenizer(WRITTEN)["input_ids"])

    monkeypatch.setattr(chat_module, "answer", answered)
    loaded: Any = SimpleNamespace(
        select=lambda name: source(tokenizer), model=SimpleNamespace(config=SimpleNamespace()), sources={}
    )
    chat = Chat(loaded, InferConfig(run=""), io.StringIO())
    for line in ("三加四", "再说一遍", f"/save {tmp_path / 'c.jsonl'}"):
        chat.take(line)
    assert [turn.content for turn in chat.turns] == ["三加四", "七", "再说一遍", "七"]
    assert "想" not in prompts[1] and "七" in prompts[1]
    assert '"content": "七", "reasoning_content": "想"' in (tmp_path / "c.jsonl").read_text()


def test_a_batch_has_thoughts_beside_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = templated("qwen3")
    written = [list(tokenizer(text)["input_ids"]) for text in (WRITTEN, "<think>\n想", "七<|im_end|>")]
    monkeypatch.setattr(workers, "answers", lambda *_: written)
    ends = SimpleNamespace(eos_token_id=[tokenizer.eos_token_id])
    monkeypatch.setattr(workers, "generation_config", lambda *_: ends)
    prompt = tokenizer("<|im_start|>assistant\n")["input_ids"]
    loaded: Any = SimpleNamespace(select=lambda: source(tokenizer))
    found = workers.answer_bucket(loaded, (0, [0, 1, 2], [prompt] * 3), InferConfig(run=""))
    asked = Conversation((Turn("user", "Q"), Turn("assistant", "")))
    lines = [_line(Record(None, asked, False), answer) for answer in found]
    assert [(line["answer"], line.get("reasoning_content"), line["finish"]) for line in lines] == [
        ("七", "想", "stop"), ("", "想", "length"), ("七", None, "stop"),
    ]  # fmt: skip


def test_thinking_that_cannot_be_switched_is_refused() -> None:
    model: Any = SimpleNamespace(name="m", template="chat", max_length=None, thinking=Thinking.auto)
    check_thinking(templated("qwen3"), model, InferConfig(run="", thinking=Thinking.off))
    check_thinking(templated("qwen2_5"), model, InferConfig(run=""))
    with pytest.raises(ConfigError, match="thinking=off: the chat template of m has no way to turn thinking on or off"):
        check_thinking(templated("qwen2_5"), model, InferConfig(run="", thinking=Thinking.off))
