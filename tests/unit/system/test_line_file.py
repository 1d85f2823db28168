"""Lines are appended whole, and what is there before them stays."""

import json
import math
import os
import resource
from pathlib import Path

import pytest

from hydraft.system import line_file


def test_values_are_appended_as_lines_of_json(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    line_file.append(file, {"a": "长", "b": math.nan}, {"c": "\udc80"})
    line_file.append(file)
    assert file.read_bytes() == '{"a": "长", "b": null}\n{"c": "\\udc80"}\n'.encode()
    assert line_file.read(file).values == [{"a": "长", "b": None}, {"c": "\udc80"}]
    assert line_file.read(tmp_path / "none").values == []


def test_a_last_line_that_lacks_only_its_end_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n{"a": 2}')  # as an editor saves it
    assert line_file.read(file) == line_file.Lines([{"a": 1}, {"a": 2}], 0)
    line_file.append(file, {"a": 3})
    assert [value["a"] for value in line_file.read(file).values] == [1, 2, 3]


def test_a_torn_line_longer_than_a_block_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n{"a": "' + "x" * 3 * line_file.BLOCK)
    assert line_file.read(file) == line_file.Lines([{"a": 1}], 1)
    line_file.append(file, {"a": 2})
    assert file.read_text() == '{"a": 1}\n{"a": 2}\n'


def test_text_is_appended_after_a_persons_own_last_line(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_bytes(b'{"mine": "not finished')
    line_file.append_text(file, '{"a": 1}')
    assert file.read_bytes() == b'{"mine": "not finished\n{"a": 1}\n'


def test_a_write_beyond_the_limit_of_a_file_is_undone(tmp_path: Path) -> None:
    """``ulimit -f`` cuts a write as a full disk does, without root."""
    file = tmp_path / "a.jsonl"
    line_file.append(file, {"a": 1})
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        code = 1
        try:
            line_file.append(file, {"a": "x" * 200})
        except OSError as error:
            code = 0 if "File too large" in str(error) and str(file) in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert file.read_text() == json.dumps({"a": 1}) + "\n"


def test_a_program_that_holds_the_lock_for_ever_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_file, "LOCK_SECONDS", 0.05)
    file = tmp_path / "a.jsonl"
    with line_file._locked(file):
        line_file.append(file, {"a": 1})
    assert line_file.read(file).values == [{"a": 1}]
