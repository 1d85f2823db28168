"""Every parameter and its bytes, compared with the real modules: tiny models of each family with random weights."""

import dataclasses
from collections.abc import Iterator
from itertools import product

import peft
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from conftest import config_of
from families import FAMILIES, MIXTURE, PUBLISHED
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.models import prepare, shapes
from hydraft.models.load import load_trainable
from hydraft.models.shapes import planned_config
from hydraft.plan.parameters import Layout, layout, trained, trained_in
from hydraft.plan.weights import WIDTH, model_bytes

QUANTS = {
    "none": ["quant=none"],
    "nf4": ["quant=nf4"],
    "nf4, constants in fp32": ["quant=nf4", "quant.double_quant=false"],
    "int8": ["quant=int8"],
}
ADAPTERS = {
    "all-linear": [],
    "published names": ["lora.target_modules=[query_key_value,dense_4h_to_h,q_proj,down_proj]"],
    "one layer": ["lora.target_modules=[model.layers.1.self_attn.v_proj]"],
    "head": ["lora.target_modules=[v_proj,lm_head]", "quant=none"],
    "all biases": ["lora.bias=all"],
    "their biases": ["lora.bias=lora_only", "lora.target_modules=[v_proj]"],
    "dora": ["lora=dora"],
    "rslora": ["lora=rslora"],
    "pissa": ["lora=pissa", "quant=none"],
    "pissa over 4-bit weights": ["lora=pissa", "lora.r=4"],
    "lora_fa": ["lora=lora_fa"],
    "vera": ["lora=vera"],
    "copies": ["lora.modules_to_save=[embed_tokens,lm_head,norm]"],
    "patterns": [
        "lora.layers=[1]",
        "lora.rank_pattern={q_proj:3}",
        "lora.target_modules=[q_proj,v_proj]",
        "lora.exclude_modules=[v_proj]",
    ],
    "full": ["lora=none", "quant=none"],
}


def real(*overrides: str) -> tuple[Config, torch.nn.Module]:
    config = config_of("model.init=random", "model.scale=tiny", *overrides)
    ready = dataclasses.replace(config, model=prepare.native(config.model, config.seed))
    return config, load_trainable(ready)


def counted(config: Config) -> Layout:
    native = planned_config(config.model)
    assert native is not None
    known = layout(native)
    assert known is not None
    return known


def bytes_of(model: torch.nn.Module) -> tuple[int, int]:
    """Bytes of the base with its quantization constants, and of the adapter; each storage is counted once."""
    base: dict[int, int] = {}
    adapter: dict[int, int] = {}
    for name, parameter in model.named_parameters():
        target = adapter if "lora_" in name else base
        for tensor in tensors_of(parameter):
            target[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(base.values()), sum(adapter.values())


def tensors_of(parameter: torch.nn.Parameter) -> Iterator[torch.Tensor]:
    yield parameter.data
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        yield from (state.absmax, state.code)
        if state.nested:
            yield from (state.offset, state.state2.absmax, state.state2.code)
    row_scales = getattr(parameter, "SCB", None)
    if row_scales is not None:
        yield row_scales


KINDS = [
    (family, quant, ("fp32", "bf16")[(number + other) % 2])
    for number, family in enumerate(FAMILIES)
    for other, quant in enumerate(QUANTS)
]
"""Each family with each quantisation, and either with both precisions."""
KINDS += [("mixture", "none", "fp32"), ("mixture", "nf4", "bf16"), ("mixture", "nf4, constants in fp32", "bf16")]
MODELS = FAMILIES | {"mixture": MIXTURE}


@pytest.mark.parametrize(("family", "quant", "precision"), KINDS)
def test_bytes_equal_those_of_the_real_modules(family: str, quant: str, precision: str) -> None:
    config, model = real(*MODELS[family].split(), *QUANTS[quant], f"train.precision={precision}")
    known = counted(config)
    base, adapter = bytes_of(model)
    width = WIDTH[config.model.dtype]
    assert model_bytes(config, known.tensors, width) == base
    made = 4 if quant == "int8" else width  # next to int8 weights, peft creates fp32 ones, and DeepSpeed casts them
    assert sum(trained(known, config.lora).adapter) * made == adapter


@pytest.mark.parametrize(
    ("family", "adapter"), [*product(FAMILIES, ADAPTERS), *product(["mixture"], ["all-linear", "full"])]
)
def test_trained_parameters_equal_those_of_peft(family: str, adapter: str) -> None:
    config, model = real(*MODELS[family].split(), *ADAPTERS[adapter])
    trainable_parameters = trained_in(counted(config), config)
    sizes = sorted(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert sorted(trainable_parameters.tensors) == sizes
    if isinstance(model, peft.PeftModel):
        adapters = [*model.named_parameters(), *model.named_buffers()]
        frozen = [
            one.numel() for name, one in adapters if ("lora_" in name or "vera_" in name) and not one.requires_grad
        ]
        assert sum(frozen) == sum(trainable_parameters.frozen) + trainable_parameters.shared
        real_targets = {
            name.removeprefix("base_model.model.")
            for name, module in model.named_modules()
            if hasattr(module, "lora_A") or hasattr(module, "vera_lambda_b")
        }
        assert set(trainable_parameters.targets) == real_targets


@pytest.mark.parametrize(("model", "size"), PUBLISHED, ids=lambda value: value)
def test_a_published_size_has_its_published_number_of_parameters(model: str, size: str) -> None:
    """Of the plan's layout, and of the module that transformers makes of the shape."""
    config = config_of(f"model={model}", f"model.size={size}")
    assert counted(config).count == PUBLISHED[model, size]
    assert config.model.shape is not None
    native = AutoConfig.for_model(**shapes.native_config(config.model.shape))
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(native)
    assert sum(parameter.numel() for parameter in made.parameters()) == PUBLISHED[model, size]


def test_the_default_adapter_of_llama_by_hand() -> None:
    config = config_of("model=llama3")
    per_layer = 8 * (4096 + 4096) * 2 + 8 * (4096 + 1024) * 2 + 8 * (4096 + 14336) * 3  # q o, k v, gate up down
    assert trained(counted(config), config.lora).count == 32 * per_layer == 20_971_520


def test_the_embedded_model_is_counted_from_its_own_config() -> None:
    assert counted(config_of()).count == 1_921_728


def test_missing_targets_are_refused() -> None:
    config = config_of("model=llama3", "lora.target_modules=[query,value]")
    with pytest.raises(ConfigError, match=r"lora\.target_modules=.*no such layers.*q_proj"):
        trained(counted(config), config.lora)


def test_an_unknown_architecture_has_no_layout() -> None:
    assert layout({"model_type": "mamba", "hidden_size": 8}) is None
