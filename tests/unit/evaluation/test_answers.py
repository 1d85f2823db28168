"""answers.jsonl: what it holds, what a resumed run keeps of it, and ``hydraft answers``."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from hydraft.__main__ import main
from hydraft.config.choices import Task
from hydraft.data import held_out
from hydraft.data.records import Conversation, Turn
from hydraft.evaluation import answers
from hydraft.evaluation.record_scores import RecordScores

RECORDS = [
    Conversation((Turn("user", "判断：", input="很好。"), Turn("assistant", "正面")), task="sentiment"),
    Conversation((Turn("user", "首都？"), Turn("assistant", "北京"))),
    Conversation((Turn("user", "x" * 9_999), Turn("assistant", "\x1b[2J"))),
    Conversation(plain="没有问题"),
]


def written(folder: Path, steps: dict[int, Sequence[str]]) -> Path:
    """A run's folder with an evaluation at each of ``steps``; an answer is right if it is the reference."""
    folder.mkdir(exist_ok=True)
    for step, texts in steps.items():
        scores = [
            RecordScores(i, f"{held_out.digest(one, 0):016x}", 0.0, 0.0, {"exact_match": float(text == one.reference)})
            for i, (one, text) in enumerate(zip(RECORDS, texts, strict=False))
        ]
        answers.append(folder, answers.lines(step, RECORDS, scores, dict(enumerate(texts)), Task.auto))
    return folder


def test_a_line_has_the_question_and_the_answer_of_a_record(tmp_path: Path) -> None:
    written(tmp_path, {0: ["", "上海", "\x1b[2J"], 8: ["正面", "北京", "y"]})
    raw = (tmp_path / answers.FILE).read_bytes()
    assert b"\x1b" not in raw and "正面".encode() in raw  # JSON escapes what a terminal would obey
    first = json.loads(raw.splitlines()[0])
    assert (first["step"], first["record"], first["task"]) == (0, 0, "sentiment")
    assert (first["prompt"], first["answer"], first["reference"]) == ("判断：\n很好。", "", "正面")
    assert first["scores"] == {"exact_match": 0.0}
    by_step = answers.read(tmp_path)
    assert [line.is_right for line in by_step[8]] == [True, True, False]
    assert len(by_step[0][2].prompt) == answers.LONGEST and by_step[0][2].prompt.endswith("…")


def test_a_resumed_run_repeats_later_evaluations_without_doubling_them(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole", {0: ["a"], 2: ["b"], 4: ["c"]})
    cut = written(tmp_path / "cut", {0: ["a"], 2: ["b"], 4: ["c"]})
    answers.keep(cut, [0, 2])
    assert list(answers.read(cut)) == [0, 2]
    written(cut, {4: ["c"]})
    assert (cut / answers.FILE).read_bytes() == (whole / answers.FILE).read_bytes()
    answers.keep(cut, [])
    assert answers.read(cut) == {}


def test_damaged_and_foreign_lines_are_left_out(tmp_path: Path) -> None:
    written(tmp_path, {0: ["a"]})
    good = (tmp_path / answers.FILE).read_text()
    (tmp_path / answers.FILE).write_text(
        '{"step": 0}\n' + good + good.replace('"record": 0', '"record": "0"') + good[:30]
    )
    assert [line.answer for line in answers.read(tmp_path)[0]] == ["a"]


def test_before_and_after_are_the_first_and_the_last_evaluation(tmp_path: Path) -> None:
    assert answers.before_and_after(tmp_path) == []
    written(tmp_path, {0: ["", "上海"], 4: ["负面", "上海"], 8: ["正面", "北京"]})
    pairs = answers.before_and_after(tmp_path)
    assert [(pair.first.answer, pair.second.answer) for pair in pairs] == [("", "正面"), ("上海", "北京")]
    assert len(answers.before_and_after(tmp_path, 1)) == 1 and answers.before_and_after(tmp_path, 0) == []


def test_two_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = written(tmp_path / "one", {0: ["", "", ""], 8: ["正面", "北京", "\x1b[2J"]})
    two = written(tmp_path / "two", {0: ["", "", ""], 6: ["负面", "北京", "z"]})
    assert main(["answers", str(one), str(two)]) == 0
    said = capsys.readouterr().out
    assert said.count("record ") == 3 and "\x1b" not in said and "\\x1b[2J" in said
    assert f"{one} at step 8: 3 of 3 right" in said and f"{two} at step 6: 1 of 3 right" in said
    assert "2 of 3 answers differ" in said
    assert main(["answers", str(one), str(two), "--differ"]) == 0
    differing = capsys.readouterr().out
    assert "北京" not in differing and f"✗ answer of {two} 负面" in differing
    assert main(["answers", str(one), "--before"]) == 0
    assert "at step 0: 0 of 3 right" in capsys.readouterr().out


def test_the_newest_run_is_named_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["answers", "last"]) == 2 and "no run below outputs/" in capsys.readouterr().err
    for name in ("old", "new"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (written(tmp_path / "outputs" / name, {2: [name]}) / "config.yaml").write_text("{}\n")
    assert main(["answers", "last"]) == 0 and "outputs/new at step 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "takes one or two folders"),
        (["{}", "--all"], "takes one or two folders"),
        (["{}/none"], "no such folder"),
        (["{}"], "has no answers"),
        (["{}", "--differ"], "--differ compares two runs"),
    ],
)
def test_mistakes_are_refused_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["answers", *(word.format(tmp_path) for word in arguments)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
