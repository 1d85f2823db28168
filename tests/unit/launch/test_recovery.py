"""What a run changes in itself before it begins again."""

from pathlib import Path

import pytest

from conftest import config_of
from hydraft.errors import RankFailed
from hydraft.launch import recovery


@pytest.mark.parametrize(
    ("sizes", "halved"), [((4, 1), (2, 2)), ((3, 2), (1, 6)), ((6, 1), (3, 2)), ((5, 2), (2, 5)), ((1, 8), None)]
)
def test_half_a_micro_batch_keeps_the_global_batch(sizes: tuple[int, int], halved: tuple[int, int] | None) -> None:
    config = config_of(
        f"train.micro_batch_size={sizes[0]}",
        f"train.gradient_accumulation_steps={sizes[1]}",
        "train.auto_micro_batch=true",
    )
    smaller = recovery._halved(config)
    found = smaller and (smaller.train.micro_batch_size, smaller.train.gradient_accumulation_steps)
    assert found == halved
    assert smaller is None or smaller.global_batch_size == config.global_batch_size


@pytest.mark.parametrize(
    "cause", ["OutOfMemory: while the model was loaded: …", "killed by SIGKILL (out of memory, if no one sent it)"]
)
def test_only_what_a_smaller_micro_batch_helps_against_is_mended(cause: str, tmp_path: Path) -> None:
    config = config_of("train.micro_batch_size=4", "train.auto_micro_batch=true")
    failed = RankFailed(0, cause, tmp_path / "rank-0.log")
    assert not recovery.Attempts(config, tmp_path).mend(failed)
    advice = recovery.advice_on_a_kill(config, failed)
    assert ("train.micro_batch_size=2 train.gradient_accumulation_steps=2" in advice) == cause.startswith("killed")
