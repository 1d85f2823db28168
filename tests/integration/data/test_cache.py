"""Records are encoded once: later runs and other ranks read what the first process wrote."""

import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from conftest import ROOT, SCALE, config_of
from hydraft.config.choices import Format, Thinking
from hydraft.config.schema import Config
from hydraft.data import cache, mixture
from hydraft.data.encoding import Encoding
from hydraft.data.records import Conversation, Turn
from hydraft.data.tokenize import encode
from hydraft.errors import ConfigError

RECORDS = [{"instruction": f"问{i}", "output": "答" * (i + 1)} for i in range(20)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(ROOT / "src/hydraft/models/tiny")  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def written(folder: Path, *overrides: str) -> Config:
    file = folder / "records.json"
    if not file.exists():
        file.write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    return config_of(f"data.train={file}", "data.max_length=24", *overrides)


def test_cached_records_equal_encoded_ones(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    config = written(tmp_path)
    reported: list[tuple[int, int]] = []
    encoded = cache.training(config.data, 0, tokenizer, True, lambda done, total: reported.append((done, total)))
    examples, cut = encode(list(mixture.training(config.data, 0)), tokenizer, config.data)
    assert [encoded[index] for index in range(len(encoded))] == examples
    assert list(encoded.lengths) == [len(example["input_ids"]) for example in examples]
    assert encoded.truncation == cut
    assert cut.records > 0
    assert reported[-1] == (20, 20)
    cache.training(config.data, 0, tokenizer, True, lambda *_: pytest.fail("encoded again"))


def test_notes_are_read_from_the_cache_too(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    file = tmp_path / "records.json"
    file.write_text(json.dumps([*RECORDS, {**RECORDS[0], "system": "你是助手"}]), encoding="utf-8")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}"
    config = written(tmp_path)
    for _ in range(2):
        encoded = cache.training(config.data, 0, tokenizer, True, lambda *_: None)
        assert encoded.notes == [
            "1 record has a system turn, which this model's chat template does not support: it is put before the first question"
        ]
    assert len(list((tmp_path / "cache/encoded").glob("*/about.json"))) == 1


def test_every_process_reads_whether_answers_have_thoughts(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    def thoughtful(record: dict[str, Any], form: Format, place: str, number: int) -> Conversation:
        return Conversation(
            (Turn("user", "问"), Turn("assistant", "答", reasoning="想" * (number > 15))), number=number
        )

    config = written(tmp_path)
    some = Encoding(read=thoughtful, name="some")
    for encodes in (True, False):
        assert cache.training(config.data, 0, tokenizer, encodes, lambda *_: None, some).thinking is Thinking.on
        assert cache.training(config.data, 0, tokenizer, True, lambda *_: None).thinking is Thinking.off
    config = written(tmp_path, "data.thinking=off")
    left_out = cache.training(config.data, 0, tokenizer, True, lambda *_: None, some)
    assert left_out.notes == ["5 records have thoughts, which are left out (data.thinking=off)"]


def test_another_template_data_or_tokenizer_is_another_entry(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = written(tmp_path)
    keys = {cache.key(config.data, 0, tokenizer)}
    for override in (
        "data.template='{instruction}'",
        "data.max_length=32",
        "data.train_on=last",
        "data.only=[qa]",
        "data.thinking=off",
    ):
        keys.add(cache.key(written(tmp_path, override).data, 0, tokenizer))
    other = AutoTokenizer.from_pretrained(ROOT / "src/hydraft/models/tiny")
    other.chat_template += " "
    keys.add(cache.key(config.data, 0, other))
    (tmp_path / "records.json").write_text(json.dumps(RECORDS[:10]), encoding="utf-8")
    keys.add(cache.key(config.data, 0, tokenizer))
    assert len(keys) == 8


def test_a_rank_that_does_not_encode_waits_for_the_one_that_does(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    config = written(tmp_path)
    code = (
        "import sys; sys.path[:0] = ['tests', 'tests/support']; from conftest import config_of, ROOT; from hydraft.data import cache\n"
        "from transformers import AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(ROOT / 'src/hydraft/models/tiny')\n"
        f"config = config_of('data.train={tmp_path / 'records.json'}', 'data.max_length=24')\n"
        "print('waiting', flush=True)\n"
        "print(len(cache.training(config.data, 0, tokenizer, False, lambda *_: None)))"
    )
    waiting = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "waiting\n"
    time.sleep(0.5)
    assert waiting.poll() is None
    cache.training(config.data, 0, tokenizer, True, lambda *_: None)
    assert waiting.communicate(timeout=60 * SCALE)[0].strip() == "20"


def test_a_mix_repeats_and_samples_by_weight(tmp_path: Path) -> None:
    more = tmp_path / "more.json"
    more.write_text(json.dumps([{"instruction": f"多{i}", "output": "答"} for i in range(10)]), encoding="utf-8")
    config = written(tmp_path)
    config.data.mix = [f"{more}*2.3"]
    mixed = list(mixture.training(config.data, seed=1))
    questions = [conversation.turns[0].content for conversation in mixed]
    assert len(mixed) == 20 + 23
    assert sorted(questions.count(f"多{i}") for i in range(10)) == [2] * 7 + [3] * 3
    assert mixed == list(mixture.training(config.data, seed=1))
    assert mixed != list(mixture.training(config.data, seed=2))


@pytest.mark.parametrize("entry", ["more.json", "more.json*", "*2", "more.json*0", "more.json*-1", "more.json*many"])
def test_a_mix_without_a_weight_is_refused(entry: str, tmp_path: Path) -> None:
    config = written(tmp_path, f"data.mix=[{entry}]")
    with pytest.raises(ConfigError, match=r"data\.mix: .* must be source\*weight"):
        mixture.training(config.data, 0)
