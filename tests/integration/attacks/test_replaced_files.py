"""Files of records that are replaced while a run starts: all ranks train the same records, or the run is refused."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from conftest import ROOT, config_of
from forked import Forked
from hydraft.config.schema import Config
from hydraft.data import cache, mixture
from hydraft.data.encoding import SFT
from hydraft.data.formats import conversation_of
from hydraft.errors import ConfigError
from hydraft.system.console import Screen
from hydraft.training.dataset import load_held_out, load_training_data

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


def rows(encoded: Any) -> list[Any]:
    return [encoded[index] for index in range(len(encoded))]


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
    expected = rows(cache.training(config.data, 0, tokenizer, True, lambda *_: None))
    hashed = os.pipe()

    def train(rank: int) -> list[Any]:
        ranks(rank)
        if rank == 1:
            os.read(hashed[0], 1)  # until the first rank has read the file for the key
            (tmp_path / "records.json").write_text(json.dumps(RECORDS[:10]), encoding="utf-8")
        with Screen(os.open(os.devnull, os.O_WRONLY), False) as screen:
            data = load_training_data(config, tokenizer, SFT, screen)
        return rows(data.encoded)

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


def test_ranks_that_have_read_different_held_out_records_are_refused(
    tmp_path: Path, ranks: Callable[[int], None]
) -> None:
    file = tmp_path / "held_out.json"
    file.write_text(json.dumps(RECORDS), encoding="utf-8")
    config = config_of(f"data.train={file}", f"data.eval={file}")
    original = mixture.held_out

    def evaluate(rank: int) -> None:
        ranks(rank)
        if rank == 1:
            dist.barrier()
            file.write_text(json.dumps(RECORDS[:10]), encoding="utf-8")
        load_held_out(config, conversation_of, None)

    def first() -> None:
        def held_out(*arguments: Any) -> Any:
            found = original(*arguments)
            dist.barrier()
            return found

        mixture.held_out = held_out
        evaluate(0)

    for which in (0, 1):  # both say so
        (tmp_path / "store").unlink(missing_ok=True)
        file.write_text(json.dumps(RECORDS), encoding="utf-8")
        with Forked() as forked:
            starts = [first, lambda: evaluate(1)]
            for start in (starts[which], starts[1 - which]):
                forked.start(start)
            with pytest.raises(ConfigError, match=rf"data\.eval={file}: rank 1 .* has read other records than rank 0"):
                forked.results()


@pytest.mark.parametrize("gone", [False, True], ids=["replaced", "removed"])
def test_records_are_refused_if_their_file_changes_while_it_is_encoded(
    gone: bool, config: Config, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, place: Path
) -> None:
    file = tmp_path / "records.json"

    def change(done: int, total: int) -> None:
        file.unlink() if gone else file.write_text(json.dumps(RECORDS[:10]), encoding="utf-8")

    with pytest.raises(ConfigError, match=r"data\.train=.*records\.json.*: (no such file|.*start it again)$"):
        cache.training(config.data, 0, tokenizer, True, change)
    assert list((place / "encoded").glob("*/")) == []
