"""Both tutorial setups as experiments: each of their settings is kept, or is replaced for a documented reason."""

from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from hydra import compose, initialize_config_dir

from conftest import ROOT
from hydraft.config import cli, rules
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.plan.plan import resolve
from hydraft.system.hardware import Gpu, Hardware
from hydraft.training.zero import deepspeed_config

CHATGLM2_ZERO: dict[str, Any] = {
    "stage": 3,
    "offload_optimizer": {"device": "cpu", "pin_memory": True},
    "offload_param": {"device": "cpu", "pin_memory": True},
    "overlap_comm": True,
    "contiguous_gradients": True,
    "reduce_bucket_size": 50_000_000,
    "stage3_prefetch_bucket_size": 1,  # not 50,000,000: 4-bit weights are prefetched one at a time
    "stage3_param_persistence_threshold": 100_000,
}
LLAMA3_ZERO: dict[str, Any] = {
    "stage": 2,
    "offload_optimizer": {"device": "cpu", "pin_memory": True},
    "allgather_partitions": True,
    "allgather_bucket_size": 200_000_000,
    "overlap_comm": True,
    "reduce_scatter": True,
    "reduce_bucket_size": 200_000_000,
}
CHATGLM2: dict[str, Any] = {
    "model.path": "THUDM/chatglm2-6b",
    "quant.kind": "nf4",
    "lora.r": 8,
    "lora.alpha": 32,
    "lora.dropout": 0.05,
    "lora.bias": "none",
    "lora.target_modules": ["q_proj", "k_proj", "v_proj"],  # query_key_value of the published layout
    "data.template": "### 问题：\n{instruction}\n{input}\n\n### 回答：\n",
    "data.max_length": 512,
    "train.micro_batch_size": 1,
    "train.gradient_accumulation_steps": 8,
    "train.learning_rate": 2e-4,
    "train.epochs": 3,
    "train.precision": "bf16",
    "train.max_grad_norm": 1.0,
    "train.log_every": 10,
    "train.save": "epoch",
    # DeepSpeed's activation_checkpointing block has no effect in the Trainer; this setting has the intended one.
    "train.gradient_checkpointing": True,
    "cluster.nodes": 2,
    "cluster.ranks_per_node": 4,
}
LLAMA3: dict[str, Any] = {
    "model.path": "unsloth/Meta-Llama-3.1-8B",
    "kernels.kind": "unsloth",
    "quant.kind": "nf4",
    "lora.r": 8,
    "lora.alpha": 32,
    "lora.dropout": 0.1,
    "lora.target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "data.template": "{instruction}\n{input}",
    "data.max_length": 2048,
    "train.micro_batch_size": 1,
    "train.gradient_accumulation_steps": 4,
    "train.learning_rate": 2e-4,
    "train.epochs": 3,
    "train.precision": "auto",  # the setup's fp16 on a GPU without bf16, bf16 on one with it
    "train.max_grad_norm": 1.0,
    "optimizer.betas": [0.9, 0.999],
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.01,
    "train.log_every": 10,
    "train.save": "epoch",
}


GPU = Hardware(gpus=(Gpu("card", 24 * 2**30, 8.6),) * 4)


def composed(experiment: str, *overrides: str) -> Config:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return cli.typed(compose("train", [f"experiment={experiment}", *overrides]), Config)


@pytest.mark.parametrize(
    ("experiment", "settings", "zero"),
    [("chatglm2_qlora_zero3", CHATGLM2, CHATGLM2_ZERO), ("llama3_unsloth_zero2", LLAMA3, LLAMA3_ZERO)],
)
def test_the_resolved_settings_are_those_of_the_setup(
    experiment: str, settings: dict[str, Any], zero: dict[str, Any]
) -> None:
    config = composed(experiment)
    for name, expected in settings.items():
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        assert getattr(value, "value", value) == expected, name
    made = deepspeed_config(config)
    assert made["zero_optimization"] | zero == made["zero_optimization"]
    assert made["gradient_clipping"] == 1.0


def test_the_flaws_of_the_deepspeed_configs_are_fixed() -> None:
    """No block without effect, and no batch size that contradicts the number of ranks."""
    chatglm2 = deepspeed_config(composed("chatglm2_qlora_zero3"))
    assert "aio" not in chatglm2  # only read for NVMe offload
    assert "activation_checkpointing" not in chatglm2
    assert chatglm2["train_batch_size"] == 1 * 8 * 8
    llama3 = composed("llama3_unsloth_zero2")
    llama3.cluster.ranks_per_node = 2
    assert deepspeed_config(llama3)["train_batch_size"] == 1 * 4 * 2


def test_the_aio_block_of_the_first_setup_has_a_meaning_with_a_disk() -> None:
    """Its five values, by their names in the setup. DeepSpeed itself ignores ``thread_count``, which has another name there now."""
    block = {"block_size": 1048576, "queue_depth": 8, "single_submit": False, "overlap_events": True, "thread_count": 1}
    values = [f"zero.aio.{name}={str(value).lower()}" for name, value in block.items()]
    alone = composed("chatglm2_qlora_zero3", *values)
    with pytest.raises(
        ConfigError, match=r"zero\.aio: nothing is read from or written to a disk: use zero=stage3_nvme"
    ):
        rules.check(alone, GPU)
    on_disk = [f"zero.offload_{part}=nvme" for part in ("optimizer", "param")]
    config = composed("chatglm2_qlora_zero3", *on_disk, "zero.nvme_path=/var/tmp", "cluster.hosts=[a,b]", *values)
    rules.check(config, GPU)
    made = deepspeed_config(config, Path("/var/tmp/rank"))
    thread_count = block.pop("thread_count")
    assert made["aio"] == {**block, "intra_op_parallelism": thread_count}
    for part in ("offload_optimizer", "offload_param"):
        expected = {"device": "nvme", "nvme_path": "/var/tmp/rank", "pin_memory": True}
        assert made["zero_optimization"][part] | expected == made["zero_optimization"][part]
    read = DeepSpeedConfig({**made, "train_batch_size": 8})  # this process is one rank
    assert read.aio_config | made["aio"] == read.aio_config


def test_the_second_setups_precision_depends_on_the_gpu() -> None:
    config = composed("llama3_unsloth_zero2")
    for capability, key in ((7.5, "fp16"), (8.6, "bf16")):
        card = Hardware(gpus=(Gpu("card", 24 * 2**30, capability),))
        made = deepspeed_config(resolve(config, card))
        assert {name: made[name]["enabled"] for name in ("fp16", "bf16")} == {
            "fp16": key == "fp16",
            "bf16": key == "bf16",
        }


@pytest.mark.parametrize(
    ("experiment", "reason"),
    [("chatglm2_qlora_zero3", "cluster.hostfile"), ("llama3_unsloth_zero2", "kernels=unsloth")],
)
def test_a_setup_that_cannot_run_here_gives_the_reason(experiment: str, reason: str) -> None:
    from conftest import run_script

    done = run_script("train.py", f"experiment={experiment}")
    assert done.returncode == 2
    assert reason in done.stderr
