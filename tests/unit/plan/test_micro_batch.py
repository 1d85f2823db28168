"""A micro-batch of more rows than an epoch has examples is refused; small ones are not, however few the records are."""

from pathlib import Path

import pytest

from conftest import config_of
from hydraft.errors import ConfigError
from hydraft.plan import micro_batch, preflight
from hydraft.system.hardware import detect


@pytest.mark.parametrize(("size", "examples"), [(4, 1), (64, 24), (256, 3), (1024, 900), (1024, 1024)])
def test_what_is_of_use_is_allowed(size: int, examples: int) -> None:
    micro_batch.check(size, examples)


@pytest.mark.parametrize(("size", "examples", "most"), [(257, 3, 256), (1025, 900, 1024), (2049, 1025, 2048)])
def test_more_is_refused_with_the_number_to_use(size: int, examples: int, most: int) -> None:
    with pytest.raises(ConfigError, match=rf"train\.micro_batch_size={size}: an epoch has .*: use at most {most}$"):
        micro_batch.check(size, examples)
    micro_batch.check(size, examples, estimated=True)  # the ranks, which count exactly, refuse it


def test_a_config_is_refused_before_its_ranks_start(records: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"train\.micro_batch_size=100000: an epoch has about 24 examples.*at most 256"
    ):
        config = config_of(f"data.train={records}", "data.eval=null", "train.micro_batch_size=100000")
        preflight.admit(preflight.resolve(config, detect()))
