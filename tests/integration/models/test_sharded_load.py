"""Weights that are sharded while they are loaded are bit-equal to those that bitsandbytes quantises whole, in every architecture."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

import stored
from conftest import config_of, run_ranks
from hydraft.models import prepare
from hydraft.models.streaming import each_parameter

RANKS = 3
"""Shares that divide nothing evenly."""

FAMILIES = ("chatglm2", "baichuan2", "internlm2", "qwen model.size=2.5-0.5b", "qwen model.size=3.5-0.8b")
"""With random weights of the true architecture: biases, tied and untied heads, gated delta nets."""

MIXTURES = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 32},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32},
}
"""transformers merges their experts while it loads them, and they are quantised as one weight."""


def mixture(kind: str, folder: Path) -> Path:
    """A random two-layer mixture of experts."""
    shape = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "vocab_size": 3072, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1}
    return stored.save(folder, AutoConfig.for_model(kind, **shape, **more, **MIXTURES[kind]))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Of each case, what every rank found."""
    root = tmp_path_factory.mktemp("models")
    base = stored.plain(root / "base")
    wide = stored.plain(root / "wide", hidden_size=132, num_attention_heads=2, head_dim=66, tie_word_embeddings=False)
    cases = {
        "double": f"{base} fp32 double device", "single": f"{base} fp32 single device", "bf16": f"{base} bf16 double device",
        "offloaded": f"{base} bf16 single offload", "rows that are no whole blocks": f"{wide} bf16 double device",
        "stored": f"{stored.bitsandbytes(base, root / 'stored', 'nf4')} bf16 double device",
    }  # fmt: skip
    for family in FAMILIES:
        config = config_of(f"model={family.split()[0]}", *family.split()[1:], "model.init=random", "model.scale=tiny")
        cases[family] = f"{prepare.native(config.model, config.seed).path} fp32 double device"
    cases |= {kind: f"{mixture(kind, root / kind)} bf16 double device" for kind in MIXTURES}
    by_rank = run_ranks("tests/support/sharded_load_rank.py", list(cases.values()), RANKS)
    return {name: list(found) for name, found in zip(cases, zip(*by_rank, strict=True), strict=True)}


def test_every_parameter_is_that_of_the_whole_model(results: dict[str, list[dict[str, Any]]]) -> None:
    for name, found in results.items():
        for rank in found:
            assert rank["differing"] == [] and rank["quantised"] > 0 and rank["others"] > 0, (name, rank)


def test_a_rank_keeps_its_share_and_no_more(results: dict[str, list[dict[str, Any]]]) -> None:
    for name, found in results.items():
        padding = 1 << 8  # of each parameter: a block, and up to 16 bytes before each of its parts
        for rank in found:
            count = rank["quantised"] + rank["others"]
            assert rank["kept"] <= rank["whole"] / RANKS + count * padding, (name, json.dumps(rank))


def test_a_weight_that_cannot_be_read_ends_the_load(tmp_path: Path) -> None:
    """transformers would go on with the next tensor, and this rank's peers would wait for it."""

    def failing(layer: Any, weight: torch.Tensor) -> torch.nn.Parameter:
        raise OSError("the disk is gone")

    base = stored.plain(tmp_path / "base")
    with pytest.raises(OSError, match="the disk is gone"), each_parameter(quantise=failing):
        AutoModelForCausalLM.from_pretrained(base, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
