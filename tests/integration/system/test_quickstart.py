"""The hour of docs/quickstart.md: every command of the page, in order, with hydraft installed from a wheel."""

import json
import re
import signal
import subprocess
import urllib.request
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import installed
from conftest import SCALE
from installed import Installed
from pages import blocks
from terminal import Terminal

pytest.importorskip("lm_eval")

PAGE, CHINESE = "docs/quickstart.md", "docs/zh/quickstart.md"
FOLDER = "my-reviews"

SHORTER = {
    "hydraft sweep": "train.max_steps=40 data.eval_limit=12",
    "hydraft infer mode=evaluate": "benchmark_limit=12",
    "hydraft board": "--port 0",
}
"""What is added to a command that the page has, so that the test takes less time, or any free port."""


@dataclass
class Hour:
    """A shell in which the page's commands are typed."""

    hydraft: Installed
    programs: Path
    """``hydraft`` and ``python`` of the virtual environment, with the libraries in memory."""
    bare: Path
    """A virtual environment that has the packages, but not hydraft."""
    said: dict[str, str] = field(default_factory=dict)
    """By block, what was printed."""

    @property
    def folder(self) -> Path:
        """The folder that the page works in."""
        made = self.hydraft.folder / FOLDER
        return made if made.exists() else self.hydraft.folder

    def run(self, text: str) -> str:
        """Run a block; what it prints on stderr."""
        bare = "from transformers" in text
        first = self.bare / "bin" if bare else self.programs
        path = f"{first}:{self.hydraft.variables()['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], cwd=self.folder, env={**self.hydraft.variables(), "PATH": path},
            capture_output=True, text=True, timeout=300 * SCALE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        self.said[text] = done.stdout
        return done.stderr

    def board(self, text: str) -> "subprocess.Popen[str]":
        """The board, as it is started in a second terminal."""
        words = ["bash", "-c", f"exec {text}"]
        return subprocess.Popen(words, cwd=self.folder, env=self.hydraft.variables(), stdout=subprocess.PIPE, text=True)

    def chat(self, text: str) -> None:
        """Type a review into the chat, and leave it."""
        words = [str(self.hydraft.command), *text.split()[1:]]
        with Terminal(words, self.folder, self.hydraft.variables()) as terminal:
            terminal.wait("/help lists the commands.*>")
            terminal.type(f"{REVIEWS[0]}\r")
            terminal.wait(rf"{REVIEWS[0]}\n[^\n]*{self.answers()[0]}[^\n]*\n>")
            terminal.type("/exit\r")
            terminal.wait("not to be answered", ended=True)

    def answers(self) -> list[str]:
        """What the best job of the sweep says of the two reviews."""
        return next(said for text, said in self.said.items() if text.startswith("hydraft infer run=best")).split()


REVIEWS = ("房间很干净，服务也很热情。", "快递太慢了，客服也不理人。")


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hour]:
    folder = tmp_path_factory.mktemp("hour")
    made = installed.install(folder)
    bare = folder / "bare"
    venv.create(bare, symlinks=True, with_pip=False)
    (next(bare.glob("lib/python*/site-packages")) / "packages.pth").write_text(
        (made.packages / "packages.pth").read_text()
    )
    with installed.warm(made, folder / "programs") as programs:
        yield Hour(made, programs, bare)


def test_both_languages_have_the_same_commands() -> None:
    english, chinese = (blocks(page) for page in (PAGE, CHINESE))
    assert [block.language for block in english] == [block.language for block in chinese]
    for one, other in zip(english, chinese, strict=True):
        if one.language:
            assert _without_comments(one.text) == _without_comments(other.text)
        else:
            assert one == other


def _without_comments(text: str) -> str:
    return re.sub(r" *# .*", "", text)


def test_every_command_of_the_page(hour: Hour) -> None:
    first, *commands = [block.text for block in blocks(PAGE, "bash")]
    assert "pip install" in first and not any("pip install" in text for text in commands)  # the fixture has done that
    board = None
    for text in commands:
        for begin, more in SHORTER.items():
            text = re.sub(rf"^{begin}.*", rf"\g<0> {more}", text, flags=re.MULTILINE)
        if text.startswith("hydraft board"):
            board = hour.board(text)
        elif "mode=chat" in text:
            hour.chat(text)
        elif "|| true" in text:
            assert "hydraft train: data.train=reviews.csv, record 1: 'label' is the number 0" in hour.run(text)
        else:
            hour.run(text)
    assert board is not None
    _ends(board, hour)
    _shows_what_it_says(hour)


def _ends(board: "subprocess.Popen[str]", hour: Hour) -> None:
    """The board knows the run and the jobs of the sweep, and ends with Ctrl-C."""
    assert board.stdout is not None
    address = board.stdout.readline().strip()
    with urllib.request.urlopen(f"{address}api/board", timeout=30) as reply:
        known = json.loads(reply.read())
    rows: list[dict[str, Any]] = known["runs"]
    assert [row["state"] for row in rows] == ["completed"] * 5
    board.send_signal(signal.SIGINT)
    assert board.wait(30 * SCALE) == 0


def _shows_what_it_says(hour: Hour) -> None:
    """The run has learned, the sweep has four jobs, and both exports answer as the best of them does, without hydraft."""
    (result,) = hour.folder.glob("outputs/*/*/result.json")
    after = json.loads(result.read_text())["after"]
    assert after["accuracy"] > 0.75
    assert (hour.folder / "multirun" / "first" / "report.html").is_file()
    said = "".join(hour.said.values())
    assert "multirun/first: 4 done" in said and "at step 114: " in said and "zh_general" in said
    card = (hour.folder / "reviews-model" / "README.md").read_text(encoding="utf-8")
    assert re.search(r"\nhydraft train data=reviews lora\.r=(4|16) train\.learning_rate=0\.00[24]", card), card
    python = [str(hour.bare / "bin" / "python"), "-c", "import hydraft"]
    alone = subprocess.run(python, env=hour.hydraft.variables(), capture_output=True, text=True, check=False)
    assert "No module named 'hydraft'" in alone.stderr
    last = next(said for text, said in hour.said.items() if "from transformers" in text)
    one, other = hour.answers()
    assert [line for line in last.splitlines() if line in ("正面", "负面")] == [one, one, other, other]
