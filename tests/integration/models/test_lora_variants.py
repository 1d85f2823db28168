"""Adapters of each variant train as those of plain peft and torch, on two ranks, and what is saved fits the original base."""

import os
from typing import Any

import bitsandbytes.functional as bnb
import peft
import pytest
import torch
from peft.utils.loftq_utils import _low_rank_decomposition
from transformers import AutoModelForCausalLM, set_seed

from conftest import config_of, run_ranks
from hydraft.models.load import load_trainable
from hydraft.system.source_tree import TINY
from hydraft.training import eva

SHARDED = "zero=stage3 zero.stage3_param_persistence_threshold=0"
NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NARROW = "lora.layers=[0,2] lora.exclude_modules=[k_proj] lora.rank_pattern={down_proj:4,layers.2.self_attn.q_proj:2} lora.alpha_pattern={v_proj:4}"
CASES: dict[str, dict[str, Any]] = {
    f"lora=olora quant=none {SHARDED}": {"init_lora_weights": "olora", "lora_alpha": 8},
    f"lora=olora quant=nf4 {SHARDED}": {"init_lora_weights": "olora", "lora_alpha": 8},
    f"lora=pissa quant=none {SHARDED}": {"init_lora_weights": "pissa", "lora_alpha": 8},
    "lora=pissa quant=nf4 zero=stage2": {"init_lora_weights": "pissa", "lora_alpha": 8},
    f"lora=loftq quant=nf4 {SHARDED}": {"r": 16},
    "lora=orthogonal quant=nf4 zero=stage2": {"init_lora_weights": "orthogonal"},
    f"lora=lora_fa quant=none {SHARDED}": {"r": 16, "lora_alpha": 32},
    f"lora=vera quant=nf4 {SHARDED}": {},
    f"lora=dora quant=nf4 {SHARDED}": {"use_dora": True},
    "lora.modules_to_save=[embed_tokens,lm_head,norm] quant=nf4 zero=stage2": {
        "modules_to_save": ["embed_tokens", "lm_head", "model.norm"]
    },
    f"{NARROW} quant=nf4 {SHARDED}": {
        "layers_to_transform": [0, 2],
        "exclude_modules": ["k_proj"],
        "rank_pattern": {"down_proj": 4, "layers.2.self_attn.q_proj": 2},
        "alpha_pattern": {"v_proj": 4},
    },
}
"""Overrides, and the arguments of peft for the same; over 4-bit weights, peft gets unquantised weights of the same values."""


def plain(overrides: str, arguments: dict[str, Any]) -> Any:
    """The adapted model in one process, without DeepSpeed and quantised layers."""
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    lost: dict[str, torch.Tensor] = {}
    for name, layer in model.model.named_modules():
        if "quant=nf4" in overrides and isinstance(layer, torch.nn.Linear):
            codes, state = bnb.quantize_4bit(
                layer.weight.data, blocksize=64, quant_type="nf4", compress_statistics=True
            )
            lost[name] = layer.weight.data - (kept := bnb.dequantize_4bit(codes, state))
            layer.weight.data = kept
    set_seed(config_of().seed)
    if "vera" in overrides:
        return peft.get_peft_model(
            model, peft.VeraConfig(task_type="CAUSAL_LM", r=256, vera_dropout=0.0, target_modules=NAMES)
        )
    settings = {"task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "target_modules": NAMES} | arguments
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    for name, parameter in adapted.named_parameters():
        if "lora_fa" in overrides and "lora_A" in name:
            parameter.requires_grad_(False)
        if "loftq" in overrides and "lora_" in name:
            layer, _, side = name.removeprefix("base_model.model.model.").partition(".lora_")
            parameter.data = _low_rank_decomposition(lost[layer], 16)["R" if side.startswith("A") else "L"]
    return adapted


def losses_of(model: Any) -> list[float]:
    """The steps of ``lora_rank.py``."""
    rows = torch.randint(9, 99, (3, 2, 24), generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, eps=1e-5)
    found = []
    for step in rows:
        optimizer.zero_grad()
        loss = model(input_ids=step, labels=step).loss
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def test_two_ranks_train_what_plain_peft_trains_and_save_what_fits_the_original_base() -> None:
    step = "train.precision=fp32 train.micro_batch_size=1 train.gradient_accumulation_steps=1"
    ranks = run_ranks("tests/support/lora_rank.py", [f"{one} {step}" for one in CASES], 2)
    seen = set()
    for (overrides, arguments), found in zip(CASES.items(), ranks, strict=True):
        assert found["losses"] == pytest.approx(losses_of(plain(overrides, arguments)), rel=1e-5), overrides
        assert found["apart"] < 1e-4, (overrides, found)
        assert found["planned"] == [found["trained"], found["frozen"]], (overrides, found)
        seen.add(round(found["losses"][1], 4))
    assert len(seen) == len(CASES)  # each case trains something of its own


def test_eva_starts_along_the_directions_in_which_inputs_vary_most() -> None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    config = config_of("lora=eva", "quant=none", "train.precision=fp32", "lora.r=4")
    model: Any = load_trainable(config)
    generator = torch.Generator().manual_seed(1)
    records: Any = [
        {"input_ids": torch.randint(9, 900, (20 + number % 9,), generator=generator).tolist()} for number in range(40)
    ]
    eva.initialise(model, records, config, torch.device("cpu"))
    again: Any = load_trainable(config)
    eva.initialise(again, records, config, torch.device("cpu"))
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if name.endswith(("layers.1.mlp.down_proj", "layers.3.self_attn.q_proj"))
    }
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, given, __, name=name: inputs[name].append(given[0][0].detach()))
    with torch.no_grad():
        for record in records:
            model(input_ids=torch.tensor([record["input_ids"]]))
    for name, layer in layers.items():
        whole = torch.cat(inputs[name])
        centred = whole - whole.mean(dim=0)
        down = layer.lora_A["default"].weight.detach()
        assert torch.allclose(down @ down.T, torch.eye(4), atol=1e-4)
        best = torch.linalg.svdvals(centred)[:4].square().sum()
        assert float((centred @ down.T).square().sum() / best) > 0.97, name
        assert (
            torch.equal(down, again.get_submodule(name).lora_A["default"].weight)
            and not layer.lora_B["default"].weight.any()
        )
