"""Standard streams that are closed, full or no longer read: a run goes on, a command that only prints ends as other programs do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, start_script

LOST = "stdout: Broken pipe; this goes on, and what it prints is lost\n"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which ``train`` is ``python train.py``."""
    function = f'train() {{ "{sys.executable}" train.py "$@"; }}\n'
    return subprocess.run(["bash", "-c", function + command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_run_whose_reader_leaves_goes_on(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    folder = tmp_path / "run"
    process = start_script(
        "train.py",
        "train.max_steps=2",
        "train.log_every=1",
        "data.eval_limit=1",
        "data.eval_max_new_tokens=1",
        f"hydra.run.dir={folder}",
        streams=tmp_path,
    )
    with (tmp_path / "out").open() as reader:  # like | head
        lines = [next(reader) for _ in range(6)]
    process.join(200)
    assert lines[0].startswith("tiny")
    assert (process.exitcode, json.loads((folder / "result.json").read_text())["status"]) == (0, "completed")
    assert len((folder / "metrics.jsonl").read_text().splitlines()) >= 2
    assert (tmp_path / "err").read_text() == LOST


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("train mode=plan | true", 141, ""),
        ("train mode=plan > /dev/full", 1, "stdout: No space left on device\n"),
        ("train mode=plan >&- <&- 2>&-", 0, ""),
    ],
)
def test_a_command_that_only_prints(command: str, code: int, said: str) -> None:
    done = shell(f"{command}\nexit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (code, said)
