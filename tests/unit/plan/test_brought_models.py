"""Models that people bring as ``model=auto``: counted as transformers makes them, or not claimed to be known."""

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hydraft.models.families.native import FAMILIES
from hydraft.plan.parameters import layout

SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "qwen3_5_text": {
        "num_hidden_layers": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
}  # fmt: skip
UNKNOWN = (
    "qwen2_moe",
    "mixtral",
    "deepseek_v3",
    "gpt_oss",
    "glm4_moe",
    "gemma3",
    "olmo2",
    "cohere2",
    "falcon_h1",
    "minicpm3",
)
"""Not counted: experts, latent attention, other layers. A plan without a count says so, and refuses nothing."""


@pytest.mark.parametrize(("tied", "biases"), [(None, False), (True, True), (False, True)])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_is_counted_as_transformers_makes_it(model_type: str, tied: bool | None, biases: bool) -> None:
    known = AutoConfig.for_model(model_type)
    wanted = SMALL | OWN.get(model_type, {}) | ({} if tied is None else {"tie_word_embeddings": tied})
    wanted |= {key: biases for key in ("attention_bias", "mlp_bias") if hasattr(known, key)}
    config = AutoConfig.for_model(model_type, **{key: value for key, value in wanted.items() if hasattr(known, key)})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    written = json.loads(config.to_json_string(use_diff=False))
    if tied is None:
        del written["tie_word_embeddings"]  # as published: config.json has what differs from the default
    counted = layout(written)
    assert counted is not None
    assert {tensor.name: tensor.shape for tensor in counted.tensors} == {
        name: tuple(parameter.shape) for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("model_type", UNKNOWN)
def test_other_architectures_are_unknown(model_type: str) -> None:
    assert layout({"model_type": model_type} | SMALL) is None
