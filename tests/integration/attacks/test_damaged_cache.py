"""Entries of the cache that a disk, a kill or a hand has damaged: each is named, made again once, and never used as it is."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from conftest import ROOT, config_of, run_script
from forked import NOBODY, Forked, as_nobody
from hydraft.config.model import ModelConfig
from hydraft.config.schema import Config
from hydraft.data import cache
from hydraft.data.encoding import SFT
from hydraft.errors import ConfigError
from hydraft.models import prepare
from hydraft.system.console import Screen
from hydraft.training.dataset import load_training_data
from published import CHATGLM2, chatglm2_tensors, contents, save, sentencepiece_model

RECORDS = [{"instruction": f"问{i}", "output": "答" * (i + 1)} for i in range(20)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(ROOT / "src/hydraft/models/tiny")  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # processes are forked
    return tmp_path / "cache"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "records.json").write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    return config_of(f"data.train={tmp_path / 'records.json'}", "data.max_length=24")


def encoded(config: Config, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Any], int]:
    """All examples, and how often records were encoded for them."""
    calls: list[int] = []
    found = cache.training(config.data, 0, tokenizer, True, lambda done, total: calls.append(done))
    return [found[index] for index in range(len(found))], len(calls)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def flip(file: Path) -> None:
    """Change one bit in the middle, as a disk would: neither the size nor the time of the file tells of it."""
    before, data = file.stat(), bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("not a folder")


def replace_by_link_to_nothing(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.symlink_to(entry.parent / "gone")


def replace_by_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def case(name: str, damage: Callable[[Path], None], sealed: bool) -> Any:
    words = ("sealed" if sealed else "earlier", name or "entry", damage.__name__)
    return pytest.param(name, damage, sealed, id="-".join(words))


def cases(*damages: tuple[str, Callable[[Path], None]]) -> list[Any]:
    """Each for an entry with a seal, and for one of a version without: there a flipped bit has nothing to be compared with."""
    return [case(*one, sealed) for one in damages for sealed in (True, False) if sealed or one[1] is not flip]


@pytest.mark.parametrize(
    ("name", "damage", "sealed"),
    cases(
        ("data.arrow", cut), ("data.arrow", empty), ("data.arrow", flip), ("data.arrow", Path.unlink),
        ("about.json", cut), ("about.json", empty), ("about.json", flip), ("about.json", Path.unlink),
        ("about.json", replace_by_folder), ("", replace_by_file), ("", replace_by_link_to_nothing),
    ),
)  # fmt: skip
def test_damaged_encoded_records_are_named_and_encoded_again_once(
    name: str, damage: Callable[[Path], None], sealed: bool, config: Config, place: Path,
    tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    expected, count = encoded(config, tokenizer)
    assert count == 1
    (entry,) = (place / "encoded").glob("*/")
    if not sealed:
        shutil.rmtree(place / "seals")
    damage(entry / name)
    assert encoded(config, tokenizer) == (expected, 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(entry) in line and line.endswith("it is made again")
    assert encoded(config, tokenizer) == (expected, 0), "found in the cache"
    assert capsys.readouterr().err == ""
    assert [left.name for left in entry.parent.iterdir() if left.name.startswith(".")] == []


def test_an_earlier_entry_is_used_and_sealed(
    config: Config, place: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, _ = encoded(config, tokenizer)
    shutil.rmtree(place / "seals")
    (entry,) = (place / "encoded").glob("*/")
    before = contents(entry)
    assert encoded(config, tokenizer) == (expected, 0)
    assert contents(entry) == before and capsys.readouterr().err == ""
    flip(entry / "data.arrow")
    assert encoded(config, tokenizer) == (expected, 1)


def test_a_copied_entry_is_used(
    config: Config, place: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A copy has other inodes and times: its content counts. A seal that is damaged itself is made again."""
    expected, _ = encoded(config, tokenizer)
    for number, copied in enumerate((shutil.copy, shutil.copy2)):
        shutil.copytree(place, tmp_path / f"copy{number}", copy_function=copied)
        monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path / f"copy{number}"))
        assert encoded(config, tokenizer) == (expected, 0)
    (seal,) = (tmp_path / "copy1/seals").rglob("*.json")
    before = json.loads(seal.read_text())
    cut(seal)
    assert encoded(config, tokenizer) == (expected, 0)
    assert json.loads(seal.read_text()) == before


def test_of_many_processes_that_find_a_damaged_entry_one_makes_it_again(
    config: Config, place: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    expected, _ = encoded(config, tokenizer)
    reader = cache.training(config.data, 0, tokenizer, False, lambda *_: None)
    (entry,) = (place / "encoded").glob("*/")
    flip(entry / "about.json")  # the reader has data.arrow open, which goes on being read
    with Forked() as forked:
        for _ in range(6):
            forked.start(lambda: encoded(config, tokenizer))
        results = forked.results()
    assert [examples for examples, _ in results] == [expected] * 6
    assert sorted(count for _, count in results) == [0, 0, 0, 0, 0, 1]
    assert [reader[index] for index in range(len(reader))] == expected


def test_an_entry_that_cannot_be_read_is_made_again(
    config: Config, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its owner, and refused to others. (Root may read everything, so this is another user.)"""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        config.data.train = shutil.copy(config.data.train, place)
        monkeypatch.setenv("HYDRAFT_CACHE", str(place / "cache"))
        expected, _ = encoded(config, tokenizer)
        (entry,) = (place / "cache/encoded").glob("*/")
        entry.chmod(0)
        with Forked() as forked:
            forked.start(as_nobody(lambda: encoded(config, tokenizer)))
            with pytest.raises(ConfigError, match=rf"HYDRAFT_CACHE={place}/cache: .*Permission denied"):
                forked.results()
        for path in (place, *place.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        with Forked() as forked:
            forked.start(as_nobody(lambda: encoded(config, tokenizer)))
            assert forked.results() == [(expected, 1)]


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which a conversion was made, and the published checkpoint beside it."""
    folder = tmp_path_factory.mktemp("converted")
    source = save(folder / "published", CHATGLM2, chatglm2_tensors(), sentencepiece_model(), count=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYDRAFT_CACHE", str(folder / "cache"))
        prepare.native(ModelConfig(name="published", path=str(source)), 0)
    return folder


@pytest.mark.parametrize(
    ("name", "damage", "sealed"),
    cases(
        ("model-00001-of-00002.safetensors", cut), ("model-00002-of-00002.safetensors", flip),
        ("model-00001-of-00002.safetensors", Path.unlink), ("config.json", cut), ("tokenizer.json", empty),
        ("model.safetensors.index.json", cut), ("", replace_by_file),
    ),
)  # fmt: skip
def test_a_damaged_model_is_named_and_made_again_once(
    name: str, damage: Callable[[Path], None], sealed: bool, native: Path, place: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(native / "cache", place)
    if not sealed:
        shutil.rmtree(place / "seals")
    (entry,) = (place / "models").glob("*/")
    before = contents(entry)
    damage(entry / name)
    model = ModelConfig(name="published", path=str(native / "published"))
    assert prepare.native(model, 0).path == str(entry)
    lines = [line for line in capsys.readouterr().err.splitlines() if "made again" in line]
    assert len(lines) == 1 and lines[0].startswith(f"{entry}: ") and name in lines[0]
    assert contents(entry) == before
    assert prepare.native(model, 0).path == str(entry) and capsys.readouterr().err == ""


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """What makes a forked process one of two ranks on one machine."""

    def join(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        store = dist.FileStore(str(tmp_path / "store"), 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)

    yield join


def test_the_first_rank_decides_which_records_are_trained_if_a_file_is_replaced(
    config: Config, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, ranks: Callable[[int], None]
) -> None:
    """The second rank comes when another file has the name: it opens what the first has encoded."""
    expected, _ = encoded(config, tokenizer)

    hashed = os.pipe()

    def train(rank: int) -> list[Any]:
        ranks(rank)
        if rank == 1:
            os.read(hashed[0], 1)  # until the first rank has read the file for the key
            (tmp_path / "records.json").write_text(json.dumps(RECORDS[:10]), encoding="utf-8")
        with Screen(os.open(os.devnull, os.O_WRONLY), False) as screen:
            data = load_training_data(config, tokenizer, SFT, screen)
        return [data.encoded[index] for index in range(len(data.encoded))]

    def first() -> list[Any]:
        original = cache.key

        def key(*arguments: Any) -> str:
            found = original(*arguments)
            os.write(hashed[1], b"1")
            return found

        cache.key = key
        return train(0)

    with Forked() as forked:
        forked.start(first)
        forked.start(lambda: train(1))
        assert forked.results() == [expected, expected]


def test_records_are_refused_if_their_file_changes_while_it_is_encoded(
    config: Config, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, place: Path
) -> None:
    def replace(done: int, total: int) -> None:
        (tmp_path / "records.json").write_text(json.dumps(RECORDS[:10]), encoding="utf-8")

    with pytest.raises(ConfigError, match=r"data\.train=.*records\.json was changed while the run started"):
        cache.training(config.data, 0, tokenizer, True, replace)
    assert list((place / "encoded").glob("*/")) == []


def test_a_cache_that_cannot_be_written_is_refused_before_the_ranks_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["train.max_steps=1", "data.eval=null", f"hydra.run.dir={tmp_path / 'run'}"]
    for name, environment in (
        ("HYDRAFT_CACHE", {"HYDRAFT_CACHE": str(tmp_path / "file")}),
        ("HOME", {"HYDRAFT_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/proc/nohome"}),
    ):
        done = run_script("train.py", *arguments, **environment)
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2 and line.startswith(f"train.py: {name}={environment[name]}: "), done.stderr
    assert not (tmp_path / "run").exists()
