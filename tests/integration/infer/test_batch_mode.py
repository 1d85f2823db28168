"""A file of prompts: the same answers as for single prompts, once each, in the input's order, also after a kill."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from conftest import run_script, wait_for
from hydraft.config.choices import Format, InferMode
from hydraft.config.infer import InferConfig
from hydraft.data.tokenize import prompt_ids
from hydraft.errors import ConfigError
from hydraft.infer.batch import records
from hydraft.infer.batch import run as batch
from hydraft.infer.generate import answer, answers, generate
from hydraft.infer.load import load
from hydraft.infer.resolve import find
from using import RECORDS, adapter, start

LENGTH = 8
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def nested(levels: int) -> dict[str, object]:
    """A tool with a list in a list in a list, and so on."""
    value: list[object] = []
    for _ in range(levels):
        value = [value]
    return {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "a": value}}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter(tmp_path_factory.mktemp("run") / "mine", "quant=none")


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    file = tmp_path / "prompts_file.jsonl"
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS), encoding="utf-8")
    return file


def test_batched_answers_equal_single_ones(run: Path, prompts_file: Path, tmp_path: Path) -> None:
    """Token for token in fp32, whatever else is in the batch."""
    options = InferConfig(run=str(run), max_new_tokens=24)
    loaded = load(find(options), options)
    selected = loaded.select()
    read, _ = records.read(str(prompts_file), Format.alpaca, None)
    prompts = [prompt_ids(record.conversation, selected.tokenizer, selected.data) for record in read]
    assert len({len(prompt) for prompt in prompts}) > 3
    alone = [answer(loaded, selected, prompt, options) for prompt in prompts]
    assert len({tuple(ids) for ids in alone}) > 3
    assert answers(loaded, selected, prompts, options) == alone
    with (tmp_path / "output").open("w") as out:
        text = generate(loaded, InferConfig(run="", prompt="回答问题。\n0加一等于几？", max_new_tokens=24), out)
    assert text == selected.tokenizer.decode(alone[0], skip_special_tokens=True)
    assert (tmp_path / "output").read_text() == text + "\n"


ASKED = {"messages": [{"role": "user", "content": "问"}]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"messages": [{"role": "user", "content": "a\\ud800"}]}', "record 2: has half of a character"),
        ('{"messages": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 2: nested too deeply"),
        (json.dumps({**ASKED, "tools": [nested(900)]}), "line 2: nested too deeply"),
        (json.dumps({**ASKED, "tools": [TOOL]}), "record 2"),
    ],
    ids=["half", "deep", "deep tool", "no place for tools"],
)
def test_a_record_that_cannot_be_prompted_leaves_nothing_behind(
    run: Path, line: str, message: str, tmp_path: Path
) -> None:
    """The same name may then be used with an input that was mended."""
    file, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text(f"{json.dumps(ASKED)}\n{line}\n", encoding="utf-8")
    options = InferConfig(mode=InferMode.batch, run=str(run), input=str(file), output=str(output), device="cpu")
    with pytest.raises(ConfigError, match=message):
        batch.run(find(options), options)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in.jsonl"]


def test_a_killed_batch_resumes_without_loss_or_repetition(run: Path, prompts_file: Path, tmp_path: Path) -> None:
    """Two processes, SIGKILL, a truncated line, then one process: the file equals that of an uninterrupted run."""
    settings = ["mode=batch", f"run={run}", f"input={prompts_file}", f"max_new_tokens={LENGTH}", "batch_size=2"]
    uninterrupted, output = tmp_path / "uninterrupted.jsonl", tmp_path / "answers.jsonl"
    done = run_script("infer.py", *settings, f"output={uninterrupted}")
    assert done.returncode == 0, done.stderr
    assert "qa exact match" in done.stdout
    part = tmp_path / "answers.jsonl.part"
    process = start(tmp_path / "streams", *settings, f"output={output}", "cluster=1x2")
    wait_for(lambda: part.exists() and part.read_bytes().count(b"\n") >= 3, 120, "two buckets")
    members = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    wait_for(lambda: not any(member.is_running() for member in members), 10, "the end of its processes")
    assert not output.exists()
    before = part.read_bytes().count(b"\n") - 1
    with part.open("a") as file:
        file.write('{"bucket": 5, "answers": [{"ind')
    other = run_script("infer.py", *settings, f"output={output}", "seed=1")
    assert other.returncode == 2
    assert "was started with another input, model or setting" in other.stderr
    resumed = run_script("infer.py", *settings, f"output={output}")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming: {2 * before} of {len(RECORDS)} records are done" in resumed.stdout or before == 6
    assert output.read_bytes() == uninterrupted.read_bytes()
    assert not part.exists()
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["id"] for line in lines] == [record["id"] for record in RECORDS]
    assert [line["reference"] for line in lines] == [record["output"] for record in RECORDS]
    summary = json.loads((tmp_path / "answers.summary.json").read_text())
    assert summary["records"] == summary["scored"] == len(RECORDS)
    assert set(summary["scores"]) == {"exact_match", "empty", "qa_exact_match", "qa_f1"}
    nothing = run_script("infer.py", *settings, f"output={output}")
    assert (nothing.returncode, "nothing is left to do" in nothing.stdout) == (0, True)


@pytest.mark.parametrize(
    ("lines", "last", "reference"),
    [
        ([{"prompt": "问"}], "问", None),
        ([{"prompt": "问", "answer": "答", "system": "系统"}], "问", "答"),
        ([{"instruction": "问", "input": "题"}], "问\n题", None),
        ([{"messages": [{"role": "user", "content": "问"}]}], "问", None),
        ([{"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]}], "问", "答"),
        ([{"conversations": [{"from": "human", "value": "问"}]}], "问", None),
        ([{"question": "问", "answer": ""}], "问", None),
        ([{"text": "问", "label": 1}], "问", None),
        ([{"prompt": [{"role": "user", "content": "问"}]}], "问", None),
        ([{"conversation": [{"human": "问", "assistant": "答"}]}], "问", "答"),
        (
            [{"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答", "weight": 0}]}],
            "问",
            "答",
        ),
    ],
)
def test_every_format_is_read_with_and_without_answers(
    lines: list[dict[str, object]], last: str, reference: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    (record,), _ = records.read(str(file), Format.auto, "默认")
    turns = record.conversation.turns
    assert turns[-2].text == last
    assert (turns[-1].content or None, record.answered) == (reference, reference is not None)
    assert turns[0].content == lines[0].get("system", "默认")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no records in it"),
        ([{"text": "a"}], "plain text has no prompts"),
        ([{"prompt": "a"}, {"messages": []}], "record 1 is alpaca and record 2 is messages"),
        ([{"prompt": " "}], "record 1: 'prompt' is empty"),
        ([{"prompt": 3}], "record 1: 'prompt' must be text"),
        ([{"问题": "a"}], r"unknown format \(its keys: 问题; known formats: .*; others: columns\)"),
        ([["a"]], "record 1: must be an object"),
        ([{"messages": [{"role": "assistant", "content": "a"}]}], "turn 1 has the role assistant, expected user"),
    ],
)
def test_invalid_records_are_refused(lines: list[object], message: str, tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(ConfigError, match=message):
        records.read(str(file), Format.auto, None)
