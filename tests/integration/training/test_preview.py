"""``mode=preview`` shows what training would see: which tokens are trained, how long records are, and what is cut."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import AutoTokenizer

from conftest import ROOT, config_of, run_script
from hydraft.data.labels import IGNORE
from hydraft.errors import ConfigError
from hydraft.training import preview
from published import native_tokenizer

TINY = ROOT / "src/hydraft/models/tiny"
TRAINED, DIM = "\x1b[4;32m", "\x1b[2m"
"""Escape codes: green and underlined, dim."""


def write(file: Path, records: list[dict[str, Any]]) -> Path:
    file.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return file


def shown(*overrides: str) -> str:
    """The preview in a terminal of 100 columns."""
    console = Console(force_terminal=True, color_system="standard", width=100, legacy_windows=False)
    with console.capture() as captured:
        preview.show(config_of(*overrides), console)
    return captured.get()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def test_the_shipped_data_is_shown_and_nothing_is_left_behind(tmp_path: Path) -> None:
    done = run_script("train.py", "mode=preview", f"hydra.run.dir={tmp_path / 'run'}", FORCE_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(re.findall(r"example \d \(\d+ tokens\)", plain(done.stdout))) == preview.EXAMPLES
    assert done.stdout.count("\x1b[4;32m") >= preview.EXAMPLES
    assert re.search(r"1,800 records, 1,800 examples, [\d,]+ tokens, [\d,]+ trained \(\d+%\)", done.stdout)
    assert "data.max_length=256: no record is longer" in done.stdout
    assert not (tmp_path / "run").exists()


def test_trained_tokens_are_coloured_and_no_others(tmp_path: Path) -> None:
    turns = [("user", "一"), ("assistant", "二"), ("user", "三"), ("assistant", "四")]
    chat = write(tmp_path / "a.json", [{"messages": [{"role": role, "content": text} for role, text in turns]}])
    for train_on, answers in (("all", ["二<|im_end|>", "四<|im_end|>"]), ("last", ["四<|im_end|>"])):
        text = shown(f"data.train={chat}", f"data.train_on={train_on}")
        assert re.findall(re.escape(TRAINED) + r"(.*?)\x1b\[0m", text) == answers


def test_what_truncation_cuts_is_shown(tmp_path: Path) -> None:
    records = [{"instruction": "问" * 100, "output": "答" * 10}, {"instruction": "问", "output": "答" * 100}]
    file = write(tmp_path / "a.json", records)
    done = run_script("train.py", "mode=preview", f"data.train={file}", "data.max_length=32", "data.eval=null")
    assert done.returncode == 0, done.stderr
    sizes = re.findall(r"example \d \((\d+) of (\d+) tokens\)", done.stdout)
    assert [int(size) for size, _ in sizes] == [32, 32]
    cut = re.search(r"data\.max_length=32: 2 records cut: (\d+) prompt and (\d+) answer tokens", done.stdout)
    assert cut is not None
    assert sum(map(int, cut.groups())) == sum(int(full) - int(size) for size, full in sizes)
    assert int(cut[2]) > 0


def test_the_histogram_counts_every_example_and_marks_those_too_long(tmp_path: Path) -> None:
    console = Console(force_terminal=True, color_system="standard", width=100)
    with console.capture() as captured:
        console.print(preview.histogram([5, 6, 7, 50, 51, 119], limit=40))
    rows = [line for line in captured.get().splitlines() if "–" in line]
    counts = [int(plain(row).split()[-1]) for row in rows]
    assert sum(counts) == 6
    for row, count in zip(rows, counts, strict=True):
        low = int(plain(row).split("–")[0])
        assert ("█" in row) == bool(count)
        assert ("\x1b[31m" in row) == (low > 40)


def test_sources_and_bins_are_counted(tmp_path: Path) -> None:
    first = write(tmp_path / "a.json", [{"instruction": f"甲{i}", "output": "答"} for i in range(30)])
    second = write(tmp_path / "b.json", [{"instruction": f"乙{i}", "output": "答"} for i in range(10)])
    text = plain(shown(f"data.train={first}", f"data.mix=[{second}*1.5]", "data.packing=true", "data.max_length=64"))
    assert f"30 records from {first}\n15 records from {second}*1.5\n45 records, 45 examples" in text
    found = re.search(r"([\d,]+) tokens, .*\ndata\.packing: 45 records in (\d+) bins, (\d+)% full", text)
    assert found is not None
    tokens, bins, full = (int(number.replace(",", "")) for number in found.groups())
    assert full == round(100 * tokens / (bins * 64))


def test_another_label_than_the_token_is_shown_beside_it(tmp_path: Path) -> None:
    """Baichuan2 is taught to end where the next question's token stands."""
    tokenizer = native_tokenizer("baichuan", tmp_path / "baichuan")
    text = preview.coloured({"input_ids": [195, 196, 195, 2], "labels": [IGNORE, 196, 2, 2]}, tokenizer)
    spans = [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]
    assert spans == [
        ("<reserved_192>", "dim"),
        ("<reserved_193>", "green underline"),
        ("</s>", "green underline"),
        ("<reserved_192>", "dim"),
        ("</s>", "green underline"),
    ]


def test_a_system_turn_that_is_not_supported_is_reported(tmp_path: Path) -> None:
    native_tokenizer("chatglm2", tmp_path / "chatglm2")
    folder = tmp_path / "chatglm2/native"
    shutil.copy(TINY / "config.json", folder)
    (folder / "model.safetensors").touch()
    file = write(tmp_path / "a.json", [{"instruction": "问", "output": "答", "system": "你是诗人"}] * 3)
    text = plain(shown("model=auto", f"model.path={folder}", f"data.train={file}"))
    assert "3 records have a system turn, which this model's chat template does not support: it is put before" in text


@pytest.fixture
def without_template(tmp_path: Path) -> Path:
    """The embedded model's folder, but for its chat template."""
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("chat_template.jinja"))
    assert AutoTokenizer.from_pretrained(folder).chat_template is None
    return folder


def test_a_model_without_a_chat_template_is_refused_with_the_override(without_template: Path) -> None:
    done = run_script("train.py", "mode=preview", "model=auto", f"model.path={without_template}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("train.py: data.template=chat: this model's tokenizer has no chat template")
    override = re.search(r'data\.template="(.*)"', done.stderr)
    assert override is not None
    again = run_script(
        "train.py", "mode=preview", "model=auto", f"model.path={without_template}", f"data.template={override[1]}"
    )
    assert again.returncode == 0, again.stderr


def test_a_tokenizer_without_an_end_is_refused(without_template: Path) -> None:
    config = json.loads((without_template / "tokenizer_config.json").read_text())
    (without_template / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": None}))
    with pytest.raises(ConfigError, match=r"model\.path: its tokenizer has no end-of-sequence token"):
        shown("model=auto", f"model.path={without_template}", "data.template='{instruction}{input}'")
