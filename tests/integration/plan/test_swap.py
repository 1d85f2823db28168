"""Swap files, their buffers and hpZ's second copy: the plan's bytes are those of real ranks, to the byte."""

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import config_of, on_ranks
from hydraft.config.schema import Config
from hydraft.models.shapes import planned_config
from hydraft.plan.hpz import second_copy
from hydraft.plan.parameters import layout, trained
from hydraft.plan.plan import resolve
from hydraft.plan.swap import swap
from hydraft.system.hardware import detect

DISK = "/var/tmp"
"""Not in main memory, on which ``tmp_path`` may be."""


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(dir=DISK))
    yield made
    shutil.rmtree(made)


def measured(ranks: int, cases: list[str], folder: Path) -> list[list[dict[str, int]]]:
    """By rank: what each case has."""
    found: list[list[dict[str, int]]] = on_ranks("tests/support/swap_rank.py", [str(folder), *cases], ranks)
    return found


def planned(case: str) -> dict[str, int]:
    path = [f"zero.nvme_path={DISK}"] if "nvme" in case else []
    config: Config = resolve(config_of(*path, *case.split()), detect())
    native = planned_config(config.model)
    known = None if native is None else layout(native)
    assert known is not None
    learns = trained(known, config.lora)
    files = swap(config, known, learns)
    found = {name: value for name, value in dataclasses.asdict(files).items() if name != "trained"}
    return {**found, "second": second_copy(config, known, learns)}


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_bytes_on_the_disk_and_in_its_buffers(ranks: int, folder: Path) -> None:
    cases = [
        f"{what} zero=stage3_nvme train.gradient_accumulation_steps=2 cluster=1x{ranks}"
        for what in (
            "quant=none",  # the embedding alone is large enough, and the head that it is tied to
            "quant=none lora=none train.precision=bf16",
            "quant=nf4",
            "quant=none lora=none zero.aio.thread_count=3 zero.offload_param=cpu",
        )
    ]
    for case, *real in zip(cases, *measured(ranks, cases, folder), strict=True):
        expected = planned(case)
        assert expected["weights"] + expected["optimizer"] > 0
        assert real == [expected] * ranks, case


@pytest.mark.parametrize("what", ["quant=nf4", "quant=none lora=none"])
def test_the_second_copy_of_hpz(what: str, folder: Path) -> None:
    case = f"zero=stage3 zero.hpz_partition_size=2 cluster=1x4 {what}"
    expected = planned(case)
    assert expected["second"] > 0
    assert measured(4, [case], folder) == [[expected]] * 4
