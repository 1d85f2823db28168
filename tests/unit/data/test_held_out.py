"""``data.eval=0.05`` holds out a share of the training records: the same one everywhere, and never in both parts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT, config_of
from hydraft.config.data import DataConfig
from hydraft.data import held_out, mixture
from hydraft.data.records import Record
from hydraft.errors import ConfigError


def write(file: Path, count: int, task: str = "qa", first: int = 0) -> Path:
    records = [
        {"instruction": f"{task} {index}", "output": "答", "task": task} for index in range(first, first + count)
    ]
    file.write_text(json.dumps(records), encoding="utf-8")
    return file


def data(train: Path, **settings: Any) -> DataConfig:
    return DataConfig(name="test", train=str(train), **settings)


def texts(records: Any) -> list[str]:
    return [record.conversations[0].turns[0].content for record in records]


@pytest.mark.parametrize(
    ("value", "count"),
    [("0.05", 10), (".05", 10), ("5%", 10), ("5e-2", 10), ("0.001", 1), ("0.5", 100), ("99.9 %", 200)],
)
def test_a_share_is_held_out_and_the_rest_is_trained(tmp_path: Path, value: str, count: int) -> None:
    config = data(write(tmp_path / "a.json", 200), eval=value)
    if count == 200:
        with pytest.raises(ConfigError, match="would hold out every training record"):
            mixture.held_out(config, 0)
        return
    trained, kept = texts(mixture.training(config, 0)), texts(mixture.held_out(config, 0))
    assert len(kept) == count and len(mixture.training(config, 0)) == len(trained) == 200 - count
    assert sorted(trained + kept) == sorted(f"qa {index}" for index in range(200))
    assert texts(mixture.training(config, 0)) == trained
    assert texts(mixture.held_out(config, 1)) != kept
    notes = mixture.training(config, 0).mixture.notes
    held = "1 record is" if count == 1 else f"{count} records are"
    assert notes == [f"data.eval={value}: {held} held out of the training records"]


def test_neither_the_order_of_the_records_nor_the_process_matters(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", 100)
    kept = sorted(texts(mixture.held_out(data(file, eval="0.1"), 3)))
    turned = tmp_path / "b.json"
    turned.write_text(json.dumps(json.loads(file.read_text())[::-1]), encoding="utf-8")
    assert sorted(texts(mixture.held_out(data(turned, eval="0.1"), 3))) == kept
    code = (
        "from hydraft.config.data import DataConfig; from hydraft.data import mixture\n"
        f"records = mixture.held_out(DataConfig(name='x', train={str(file)!r}, eval='0.1'), 3)\n"
        "print(*sorted(r.turns[0].content for r in records), sep='|')"
    )
    environment = {"PYTHONPATH": str(ROOT / "src"), "PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip().split("|") == kept


def test_equal_records_are_never_in_both_parts(tmp_path: Path) -> None:
    """Neither inside a file nor where a file is mixed in again."""
    first, second = write(tmp_path / "a.json", 50), write(tmp_path / "b.json", 60, first=20)
    doubled = tmp_path / "c.json"
    doubled.write_text(json.dumps(json.loads(first.read_text()) * 2), encoding="utf-8")
    for seed in range(5):
        config = data(doubled, eval="0.1", mix=[f"{second}*2.5", f"{first}*1"])
        trained, kept = texts(mixture.training(config, seed)), texts(mixture.held_out(config, seed))
        assert kept and trained and not set(trained) & set(kept)
        assert set(trained) | set(kept) >= {f"qa {index}" for index in range(50)}
        assert len(mixture.training(config, seed)) == len(trained)


def test_only_and_the_limit_apply_to_the_held_out_records(tmp_path: Path) -> None:
    both = tmp_path / "both.json"
    rows = [json.loads(write(tmp_path / f"{task}.json", 40, task).read_text()) for task in ("qa", "sum")]
    both.write_text(json.dumps([*rows[0], *rows[1]]), encoding="utf-8")
    config = data(both, eval="0.25", only=["sum"])
    trained, kept = texts(mixture.training(config, 0)), texts(mixture.held_out(config, 0))
    assert len(kept) == 10 and len(trained) == len(mixture.training(config, 0)) == 30
    assert all(text.startswith("sum") for text in trained + kept)
    limited = data(both, eval="0.25", only=["sum"], eval_limit=4)
    assert len(mixture.held_out(limited, 0)) == 4 and texts(mixture.training(limited, 0)) == trained


@pytest.mark.parametrize("value", ["0", "0.0", "1", "5", "-0.1", "100%", "0%"])
def test_what_is_no_share_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^data\.eval={value}: must be a file, or a share .* such as 0\.05 or 5%"):
        mixture.training(data(write(tmp_path / "a.json", 9), eval=value), 0)


def test_a_file_of_that_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "0.05", 3)
    config = data(write(tmp_path / "a.json", 9), eval="0.05")
    assert held_out.share(config) is None
    assert len(mixture.held_out(config, 0)) == 3 and len(mixture.training(config, 0)) == 9


def test_a_conversation_differs_by_its_content_only(tmp_path: Path) -> None:
    records: list[Record] = list(mixture.training(data(write(tmp_path / "a.json", 2)), 0))
    again: list[Record] = list(mixture.training(data(write(tmp_path / "b.json", 2, first=1)), 0))
    assert held_out.digest(records[1], 0) == held_out.digest(again[0], 0) != held_out.digest(records[0], 0)
    assert records[1].number != again[0].number


def test_settings_that_suit_the_shipped_records_are_not_kept_for_others(tmp_path: Path) -> None:
    shipped = config_of().data
    assert (Path(shipped.eval or "").name, shipped.max_length, shipped.eval_max_new_tokens) == (
        "zh_tasks.test.json",
        256,
        48,
    )
    file = write(tmp_path / "a.json", 2)
    own = config_of(f"data.train={file}").data
    assert (own.eval, own.max_length, own.eval_max_new_tokens) == (None, 512, 64)
    chosen = config_of(f"data.train={file}", "data.eval=0.5", "data.max_length=300").data
    assert (chosen.eval, chosen.max_length) == ("0.5", 300)
    assert config_of(f"data.train={ROOT}/src/../data/zh_tasks.train.json").data.max_length == 256


def test_shipped_pairs_have_their_own_held_out_file() -> None:
    pairs = config_of("data=zh_preferences").data
    assert (Path(pairs.train).name, Path(pairs.eval or "").name, pairs.max_length) == (
        "zh_preferences.train.json",
        "zh_preferences.test.json",
        256,
    )
    crossed = config_of(f"data.train={pairs.train}").data
    assert (crossed.name, crossed.eval, crossed.max_length) == ("zh_tasks", None, 256)
