"""The chat in a real terminal (a pty), with keys as a user types them."""

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT
from hydraft.config.infer import InferConfig
from hydraft.infer.chat import Chat
from hydraft.infer.load import load
from hydraft.infer.resolve import find
from hydraft.system.source_tree import TINY
from terminal import Terminal


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    options = (f"run={TINY}", "max_new_tokens=12", "dtype=fp32", "system=你是一个助手。")
    with Terminal([sys.executable, "infer.py", "mode=chat", *options], ROOT, os.environ) as opened:
        yield opened


def test_a_conversation_in_chinese_is_edited_answered_saved_and_reset(terminal: Terminal, tmp_path: Path) -> None:
    terminal.wait("/help lists the commands.*>")
    left, back = "\x1b[D", "\x7f"
    terminal.type(
        f"天气很坏吗？{left}{left}{back}好\r"
    )  # 天气很坏吗？, where 坏 is replaced by 好; each is two cells wide
    terminal.wait("？\n[^\n]*\n>")
    terminal.type("第二行\x1b\r第三行\r")
    terminal.wait("第三行\n[^\n]*\n>")
    file = tmp_path / "talk.jsonl"
    terminal.type(f"/save {file}\r")
    terminal.wait("2 questions and answers added.*>")
    (talk,) = [json.loads(line)["messages"] for line in file.read_text().splitlines()]
    assert [turn["role"] for turn in talk] == ["system", "user", "assistant", "user", "assistant"]
    assert [talk[0]["content"], talk[1]["content"], talk[3]["content"]] == [
        "你是一个助手。",
        "天气很好吗？",
        "第二行\n第三行",
    ]
    terminal.type("/system 用英文回答。\r")
    terminal.wait("a new conversation, with the system turn.*>")
    terminal.type(f"/save {file}\r")
    terminal.wait("the conversation is empty.*>")
    terminal.type("/nonsense\r")
    terminal.wait("unknown command; /help lists them.*>")
    terminal.type("/adapter other\r")
    terminal.wait("not among those loaded.*>")
    terminal.type("\x03")
    terminal.wait("Ctrl-D or /exit exits.*>")
    terminal.type("/exit\r")
    terminal.wait("not to be answered", ended=True)
    assert os.waitpid(terminal.process, 0)[1] == 0


def test_ctrl_c_stops_an_answer_and_keeps_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    options = InferConfig(run=str(TINY), max_new_tokens=400, temperature=6.0)  # at random, which rarely ends early
    chat = Chat(load(find(options), options), options, sys.stdout)
    for typed in (
        "a\udcff",
        "/system \udcff",
        "/save \udcff.jsonl",
    ):  # bytes that are not UTF-8, as prompt_toolkit reads them
        assert chat.take(typed) and "not UTF-8" in capsys.readouterr().out
    before = signal.getsignal(signal.SIGINT)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    chat.take("你好")
    assert chat.stopped
    answer = chat.turns[-1].content
    assert 0 < len(chat.selected.tokenizer(answer)["input_ids"]) < 380
    assert capsys.readouterr().out.strip() == answer.strip()
    assert signal.getsignal(signal.SIGINT) is before
