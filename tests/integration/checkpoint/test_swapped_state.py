"""A checkpoint written with the optimizer on a disk is resumed without one, and the other way round."""

from pathlib import Path

import pytest

from bench.equivalence import compose_run
from bench.resume import cut, metrics, train

FULL = "lora=none quant=none train.max_steps=4 train.log_every=1 train.save_every=2 train.keep_last=9 train.eps=1e-4 data.eval=null"
PLACES = {
    "disk": "zero=stage3_nvme zero.nvme_path=/var/tmp cluster=1x2 train.micro_batch_size=2",
    "memory": "zero=stage2 cluster=1x1 train.micro_batch_size=2 train.gradient_accumulation_steps=2",
}


@pytest.mark.parametrize(("written", "resumed"), [("disk", "memory"), ("memory", "disk")])
def test_the_state_moves_between_disk_and_memory(written: str, resumed: str, records: Path, tmp_path: Path) -> None:
    """To the bound of fp32 runs in other topologies; a state of zeros is apart by far more."""
    first, second = (
        compose_run([f"data.train={records}", *FULL.split(), *PLACES[name].split()]) for name in (written, resumed)
    )
    train(first, tmp_path / "whole")
    folder = cut(tmp_path / "whole", tmp_path / "cut", 2)
    train(second, folder)
    losses = [[line["loss"] for line in metrics(run)] for run in (tmp_path / "whole", folder)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert not list(Path("/var/tmp").glob("hydraft-swap-*/zero_stage_3"))
