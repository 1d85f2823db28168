"""A source names files, a folder, a pattern, a list of those, or a data set; messages tell the true reason."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from hydraft.config.choices import Format
from hydraft.data.load import Records, load
from hydraft.data.sources import Source, is_file
from hydraft.errors import ConfigError

datasets.disable_progress_bars()


def write(folder: Path, name: str, *questions: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"instruction": text, "output": "答"}) + "\n" for text in questions))
    return file


def questions(source: object) -> list[str]:
    return [record.conversations[0].turns[0].content for record in load(str(source), "data.train")]


def notes(source: object) -> list[str]:
    records = Records(str(source), "data.train")
    return [note.removeprefix(f"data.train={source}") for note in records.notes]


def test_the_shards_of_a_folder_are_read_in_natural_order(tmp_path: Path) -> None:
    write(tmp_path, "shards/part-10.jsonl", "三")
    write(tmp_path, "shards/part-9.JSONL", "一", "二")
    write(tmp_path, "shards/.hidden.jsonl", "no")
    write(tmp_path, "shards/README.txt", "no")
    write(tmp_path, "shards/dataset_info.json", "no")
    with pytest.raises(
        ConfigError, match=r"files of several kinds \(.csv, .jsonl\); name those of one, such as .*/\*.csv"
    ):
        write(tmp_path, "shards/copy.csv", "no")
        load(str(tmp_path / "shards"), "data.train")
    (tmp_path / "shards/copy.csv").unlink()
    assert questions(tmp_path / "shards") == ["一", "二", "三"]
    assert notes(tmp_path / "shards") == [": 2 files, from part-9.JSONL to part-10.jsonl"]
    assert questions(tmp_path / "shards/part-*.jsonl") == ["三"]
    assert questions(tmp_path / "**/part-*[0-9].*") == ["一", "二", "三"]
    with pytest.raises(ConfigError, match="no file matches"):
        load(str(tmp_path / "shards/x*.jsonl"), "data.train")


def test_of_a_folder_with_splits_the_training_split_is_read(tmp_path: Path) -> None:
    write(tmp_path, "set/data/train-00000-of-00002.jsonl", "一")
    write(tmp_path, "set/data/train-00001-of-00002.jsonl", "二")
    write(tmp_path, "set/data/test-00000-of-00001.jsonl", "三")
    assert questions(tmp_path / "set") == ["一", "二"]
    assert "left out: test-00000-of-00001.jsonl" in notes(tmp_path / "set")[0]
    assert questions(f"{tmp_path}/set:test") == ["三"]
    with pytest.raises(ConfigError, match=r"has no split validation \(its splits: test, train\); give .*/set:test"):
        load(f"{tmp_path}/set:validation", "data.train")
    cached = tmp_path / "datasets--owner--name"
    write(cached, "snapshots/abc/train.jsonl", "四")
    write(cached, "snapshots/old/train.jsonl", "五")
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("abc")
    assert questions(cached) == ["四"]


def test_a_list_reads_each_source_with_its_own_format(tmp_path: Path) -> None:
    first = write(tmp_path, "a.jsonl", "一")
    second = tmp_path / "b.csv"
    second.write_text("text\n二\n", encoding="utf-8")
    records = load(f"[{first}, '{second}']", "data.train")
    assert [record.number for record in records] == [1, 2]
    assert records[1].conversations[0].plain == "二"
    for source, reason in (
        (f"[{first},{first}]", "names a file twice"),
        ("[]", "an empty list"),
        (f"[{first},{tmp_path}/no.json]", rf"{tmp_path}/no\.json: no such file$"),
    ):
        with pytest.raises(ConfigError, match=reason):
            load(source, "data.train")
    with pytest.raises(ConfigError, match=r"b\.csv, record 2: has no 'instruction'"):
        load(f"[{first},{second}]", "data.train", Format.alpaca)


def test_what_save_to_disk_wrote_is_read(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"instruction": "一", "output": "答", "input": None}])
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=rows, dev=rows.map(lambda row: {"instruction": "二"})).save_to_disk(
        str(tmp_path / "two")
    )
    datasets.DatasetDict(dev=rows).save_to_disk(str(tmp_path / "only"))
    assert questions(tmp_path / "one") == questions(tmp_path / "two") == ["一"]
    assert questions(f"{tmp_path}/two:dev") == ["二"]
    assert notes(tmp_path / "only") == [": its only split, dev, is read"]
    with pytest.raises(ConfigError, match=r"has no split test \(its splits: train, dev\); give .*/two:train"):
        load(f"{tmp_path}/two:test", "data.train")
    keys = {Source(f"{tmp_path}/two{split}", "data.train").fingerprint() for split in ("", ":train", ":dev")}
    assert len(keys) == 3


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``owner/name``: a data set with two configurations, read by ``datasets`` from a folder in the hub's layout."""
    write(tmp_path, "hub/one/train.jsonl", "一")
    write(tmp_path, "hub/two/test.jsonl", "二")
    configs = "\n".join(f"- config_name: {name}\n  data_dir: {name}" for name in ("one", "two"))
    (tmp_path / "hub/README.md").write_text(f"---\nconfigs:\n{configs}\n---\n")
    real = datasets.load_dataset

    def local(name: str, *config: str, split: str) -> Any:
        assert name == "owner/name"
        return real(str(tmp_path / "hub"), *config, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", local)


@pytest.mark.usefixtures("hub")
def test_a_data_set_of_the_hub_has_configurations_and_splits() -> None:
    assert questions("owner/name:one:train") == questions("owner/name:one:train[:1]") == ["一"]
    assert questions("owner/name:two:test") == ["二"]
    for source, reason in (
        ("owner/name", r"has the configurations one, two; give one, such as owner/name:one:train$"),
        ("owner/name:three:train", r"has the configurations one, two; give one"),
        ("owner/name:one:dev", r"has no split dev \(its splits: train\); give owner/name:one:train$"),
    ):
        with pytest.raises(ConfigError, match=reason):
            load(source, "data.train")


@pytest.mark.parametrize(
    ("source", "file"),
    [
        ("owner/name", False), ("owner/name-v1.5", False), ("owner/name:20231101.zh:train", False), ("squad", False),
        ("my.xlsx", True), ("my.dat", True), ("owner/a.docx", True), ("a.JSONL.GZ", True), ("/a/b", True), ("a/b/c", True),
        ("~/a", True), ("C:\\data\\a", True), ("tests/nothing_here", True), ("nothing_here/name", False),
    ],
)  # fmt: skip
def test_a_missing_file_is_not_looked_for_on_the_hub(source: str, file: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    assert is_file(source) is file
    if file:
        with pytest.raises(ConfigError, match="no such file"):
            Source(source, "data.train")


def test_an_address_and_an_empty_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^data\.train=https://a\.b/c\.json: an address; download the file"):
        Source("https://a.b/c.json", "data.train")
    with pytest.raises(ConfigError, match=r"^data\.train=: is empty"):
        Source("", "data.train")
    with pytest.raises(ConfigError, match="no such file"):
        Source(f"[{'a' * 300}.json]", "data.train")  # longer than a name may be
