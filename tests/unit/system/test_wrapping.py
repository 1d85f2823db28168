"""Lines on a terminal are broken between words; commands, long words and what is no terminal stay as they are."""

import os
import pty
from contextlib import suppress

import pytest
from rich.cells import cell_len

from hydraft.system.console import Screen
from hydraft.system.wrapping import wrapped

TEXT = (
    "1,800 records · batch 16 x 1 accumulated x 1 rank = 16 · 339 steps, 3 epochs of about 80,000 tokens\n"
    "机场 离这里 远吗 这条 评论 的 情感 房间 不大 不过 打扫 得 干干净净 早餐 也 丰富 数学 考试 成绩"
)


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_word_is_broken(width: int) -> None:
    found = wrapped(TEXT, width)
    assert [line.split() for line in found.replace("\n", " ").split("  ")] == [TEXT.split()]
    assert all(cell_len(line) <= width for line in found.split("\n"))
    assert wrapped(found.replace("\n", " "), 10_000) == found.replace("\n", " ")


def test_a_command_stays_on_one_line() -> None:
    command = "python train.py resume=outputs/2026-11-29/03-54-49-130974 train.epochs=4"
    assert wrapped(f"preempted by SIGTERM after step 51; to resume: {command}", 60).split("\n")[-1] == command
    path = "/a/very/long/path" * 6
    assert path in wrapped(f"all operators: {path} and more", 40).split("\n")


def test_what_libraries_print_is_not_on_the_terminal() -> None:
    ours, terminal = pty.openpty()
    with Screen(terminal, visible=True) as screen:
        screen.phase("training", 2)
        print("DeepSpeed built successfully")  # in a rank, stdout is its log
        screen.say("ours")
        screen.progress.refresh()
    os.close(terminal)
    shown = b""
    with suppress(OSError), os.fdopen(ours, "rb", buffering=0) as screen_of_user:  # at its end a terminal gives EIO
        while part := screen_of_user.read(1 << 16):
            shown += part
    assert b"ours" in shown and b"training" in shown and b"DeepSpeed" not in shown
