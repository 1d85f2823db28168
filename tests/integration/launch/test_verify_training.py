"""mode=verify of train.py: real runs beside their reference."""

import dataclasses
import json
from pathlib import Path

import pytest

from bench.equivalence import compose_run
from conftest import run_script
from hydraft.config.schema import Config
from hydraft.errors import RunFailed
from hydraft.launch.verify import configs
from hydraft.launch.verify.run import verify

SMALL = ("quant=none", "data.max_length=128", "train.micro_batch_size=2", "train.gradient_accumulation_steps=1")


def test_two_sharded_packed_ranks_train_as_one_plain_rank(tmp_path: Path) -> None:
    done = run_script(
        "train.py", "mode=verify", "cluster.nodes=2", "zero=stage3", "data.packing=true", *SMALL, f"hydra.run.dir={tmp_path / 'run'}"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "8 steps of this config and of the reference: within the bounds of fp32" in done.stdout
    assert "ZeRO stage 3 and 0, ranks 2 and 1" in done.stdout and "batches packed and padded" in done.stdout
    assert "not covered: the network between 2 machines" in done.stdout
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["verify.json"]
    found = json.loads((tmp_path / "run" / "verify.json").read_text())
    assert (
        found["within_bounds"] and len(found["tested"]["losses"]) == len(found["reference"]["losses"]) == configs.STEPS
    )
    assert found["tested"]["losses"] != found["reference"]["losses"]  # they are two runs


def test_a_config_that_trains_otherwise_is_out_of_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Here, one whose learning rate is 1 % lower: the reference's is raised."""
    plain = configs.reference

    def raised(config: Config) -> Config:
        made = plain(config)
        return dataclasses.replace(
            made, train=dataclasses.replace(made.train, learning_rate=1.01 * made.train.learning_rate)
        )

    monkeypatch.setattr(configs, "reference", raised)
    with pytest.raises(RunFailed, match="does not train as the reference does") as failed:
        verify(compose_run(["zero=stage2", *SMALL]), tmp_path)
    said = capfd.readouterr().out
    assert failed.value.code == 1 and "how far rounding alone takes this config" in said
    assert "OUT OF BOUNDS: loss, gradient norm, trained weights" in said
    assert json.loads((tmp_path / "verify.json").read_text())["within_bounds"] is False
