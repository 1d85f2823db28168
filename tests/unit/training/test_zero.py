"""The DeepSpeed config: what DeepSpeed reads from it, and that it has no keys that DeepSpeed ignores."""

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from conftest import config_of
from hydraft.training.zero import deepspeed_config


@pytest.mark.parametrize("zero", ["stage0", "stage1", "stage2", "stage2_offload", "stage3", "stage3_offload"])
def test_deepspeed_reads_the_settings_of_the_option(zero: str) -> None:
    config = config_of(f"zero={zero}", "train.micro_batch_size=3", "train.gradient_accumulation_steps=5")
    read = DeepSpeedConfig(deepspeed_config(config))
    assert read.zero_config.stage == config.zero.stage
    assert (read.train_batch_size, read.train_micro_batch_size_per_gpu, read.gradient_accumulation_steps) == (15, 3, 5)
    assert (read.zero_config.offload_optimizer is not None) == zero.endswith("offload")
    assert (read.zero_config.offload_param is not None) == (zero == "stage3_offload")


def test_the_batch_size_is_computed_from_all_ranks() -> None:
    config = config_of("cluster=1x4", "train.micro_batch_size=1", "train.gradient_accumulation_steps=4")
    assert deepspeed_config(config)["train_batch_size"] == 16
