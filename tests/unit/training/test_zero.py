"""The DeepSpeed config: what DeepSpeed reads from it, and that it has no keys that DeepSpeed ignores."""

from pathlib import Path

import pytest
from deepspeed.runtime.config import DeepSpeedConfig

from conftest import config_of
from hydraft.training.zero import deepspeed_config


@pytest.mark.parametrize(
    "zero", ["stage0", "stage1", "stage2", "stage2_offload", "stage3", "stage3_offload", "stage3_nvme"]
)
def test_deepspeed_reads_the_settings_of_the_option(zero: str) -> None:
    disk = ["zero.nvme_path=/var/tmp"] if zero == "stage3_nvme" else []
    config = config_of(f"zero={zero}", *disk, "train.micro_batch_size=3", "train.gradient_accumulation_steps=5")
    read = DeepSpeedConfig(deepspeed_config(config, Path("/var/tmp")))
    assert read.zero_config.stage == config.zero.stage
    assert (read.train_batch_size, read.train_micro_batch_size_per_gpu, read.gradient_accumulation_steps) == (15, 3, 5)
    assert (read.zero_config.offload_optimizer is not None) == zero.endswith(("offload", "nvme"))
    assert (read.zero_config.offload_param is not None) == (zero in ("stage3_offload", "stage3_nvme"))


def test_the_batch_size_is_computed_from_all_ranks() -> None:
    config = config_of("cluster=1x4", "train.micro_batch_size=1", "train.gradient_accumulation_steps=4")
    assert deepspeed_config(config)["train_batch_size"] == 16


def test_deepspeed_reads_what_zeropp_quantises_and_where_it_gathers() -> None:
    """The kernels need a GPU; the config is what they are chosen by."""
    config = config_of(
        "zero=stage3_hpz", "zero.quantized_weights=true", "zero.quantized_gradients=true", "mode=plan", "quant=none",
        "train.precision=bf16", "cluster=2x4", "cluster.hosts=[a,b]",
    )  # fmt: skip
    made = {**deepspeed_config(config), "train_batch_size": config.train.micro_batch_size}  # this process is one rank
    read = DeepSpeedConfig(made).zero_config
    assert (read.zero_hpz_partition_size, read.zero_quantized_weights, read.zero_quantized_gradients) == (4, True, True)
