"""``lora.target_modules`` means the layers that peft adapts, in the model and in the plan; what matches nothing is refused."""

import dataclasses
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig

from conftest import config_of
from hydraft.config import bounds
from hydraft.config.lora import LoraConfig, as_targets
from hydraft.errors import ConfigError
from hydraft.models import lora
from hydraft.models.shapes import native_config
from hydraft.plan.parameters import layout, trained

NATIVE = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "tie_word_embeddings": True,
}  # fmt: skip


def model() -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            LlamaConfig(**{key: value for key, value in NATIVE.items() if key != "model_type"})
        )


def adapted(section: LoraConfig) -> tuple[set[str], int]:
    """The layers that peft gives an adapter, and its parameters."""
    base = model()
    found = lora.adapter(section, lora.targets(section, base))
    assert found is not None
    with_adapter = peft.get_peft_model(base, found)
    names = {
        name.removeprefix("base_model.model.") for name, part in with_adapter.named_modules() if hasattr(part, "lora_A")
    }
    return names, sum(one.numel() for one in with_adapter.parameters() if one.requires_grad)


PARTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALL = {f"model.layers.{i}.{'self_attn' if part in PARTS[:4] else 'mlp'}.{part}" for i in range(3) for part in PARTS}


def some(*parts: str, layers: tuple[int, ...] = (0, 1, 2)) -> set[str]:
    return {name for name in ALL if name.rpartition(".")[2] in parts and int(name.split(".")[2]) in layers}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["all-linear"], ALL),
        ("all-linear", ALL),
        ("q_proj", some("q_proj")),
        (["q_proj", "o_proj"], some("q_proj", "o_proj")),
        ("self_attn.v_proj", some("v_proj")),
        ("model.layers.1.mlp.up_proj", some("up_proj", layers=(1,))),
        (r".*layers\.[0-1]\..*q_proj", some("q_proj", layers=(0, 1))),
        (r".*\.(q|v)_proj", some("q_proj", "v_proj")),
        (r".*layers\.2\..*_proj|lm_head", some(*PARTS, layers=(2,)) | {"lm_head"}),
        (["all-linear", "lm_head"], ALL | {"lm_head"}),
        (["lm_head", "embed_tokens"], {"lm_head", "model.embed_tokens"}),
        (["query_key_value"], some("q_proj", "k_proj", "v_proj")),  # the published name in ChatGLM2
        (r".*layers\.0\..*query_key_value", some("q_proj", "k_proj", "v_proj", layers=(0,))),
    ],
    ids=lambda value: ",".join(sorted(value)) if isinstance(value, set) else str(value),
)
def test_the_plan_counts_the_layers_that_peft_adapts(given: list[str] | str, expected: set[str]) -> None:
    section = LoraConfig(target_modules=given)
    bounds.check(section)
    names, count = adapted(section)
    known = layout(NATIVE)
    assert known is not None
    planned = trained(known, section)
    assert set(planned.targets) == names == expected
    assert planned.count == count
    assert section.on_head is ("lm_head" in names)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["q_proj", "k_porj"], "no such layers in this model: k_porj; did you mean k_proj?"),
        (["all_linear"], "did you mean all-linear?"),
        (["all-linear", "lm_haed"], "did you mean lm_head?"),
        (["query_key_values"], "did you mean query_key_value?"),
        (["attention.q_proj"], "no such layers in this model: attention.q_proj"),
        (["proj"], "no such layers in this model: proj"),  # a part of a name is none
        ([r".*q_proj"], "stands alone, without brackets: lora.target_modules='.*q_proj'"),
        ("k_porj", "did you mean k_proj?"),
        ("q_proj|k_proj", "must match a whole name, such as model.layers.0.self_attn.q_proj"),
        (r"layers\.0\..*", "must match a whole name"),
    ],
    ids=str,
)
def test_a_target_in_no_layers_name_is_refused(given: list[str] | str, message: str) -> None:
    section, known = LoraConfig(target_modules=given), layout(NATIVE)
    assert known is not None
    for refuse in (lambda: trained(known, section), lambda: lora.targets(section, model())):
        with pytest.raises(ConfigError) as caught:
            refuse()
        assert message in str(caught.value) and "lora.target_modules=" in str(caught.value)


@pytest.mark.parametrize("given", [["input_layernorm"], ["mlp"], r".*layers.*"], ids=str)
def test_layers_that_cannot_have_an_adapter_are_refused(given: list[str] | str) -> None:
    known = layout(NATIVE)
    assert known is not None
    with pytest.raises(ConfigError, match=r"lora\.target_modules=.*is no linear layer"):
        trained(known, LoraConfig(target_modules=given))
    with pytest.raises(ValueError, match="not supported"):  # as in peft
        adapted(LoraConfig(target_modules=given))


@pytest.mark.parametrize("given", ["(q_proj", [], "", [""], 5, {"a": 1}, [["q_proj"]]], ids=str)
def test_what_is_neither_names_nor_an_expression_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="must be all-linear, a list of layer names, or a regular expression"):
        bounds.check(LoraConfig(target_modules=given))


def test_null_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"target_modules=null: must be .* use lora=none"):
        as_targets(None)


def test_the_transposed_linear_layers_of_gpt2_are_linear_layers() -> None:
    small = GPT2LMHeadModel(GPT2Config(n_embd=16, n_head=2, n_layer=1, vocab_size=32, n_positions=8))
    found = lora.targets(LoraConfig(target_modules=["all-linear", "lm_head"]), small)
    assert {name.rpartition(".")[2] for name in found} == {"c_attn", "c_proj", "c_fc", "lm_head"}


def test_a_command_line_takes_each_form() -> None:
    for typed, expected in (
        ("all-linear", ["all-linear"]),
        (r".*layers\.[0-3]\..*(q|k)_proj", r".*layers\.[0-3]\..*(q|k)_proj"),
    ):
        config = config_of("model=qwen", f"lora.target_modules='{typed}'")
        assert config.lora.targets == expected
        assert config.model.shape is not None
        known = layout(native_config(config.model.shape))
        assert known is not None
        assert trained(known, dataclasses.replace(config.lora)).targets
