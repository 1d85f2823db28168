"""The optimizer of a run: the library's class with the run's settings, and its groups."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from bitsandbytes.optim import AdamW8bit, Lion32bit
from transformers import LlamaConfig, LlamaForCausalLM, Trainer

from conftest import config_of
from hydraft.training.muon import Muon
from hydraft.training.optimizer import build

SHAPE = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
ADAPTER = peft.LoraConfig(r=4, target_modules=["q_proj", "lm_head"], use_dora=True, bias="all")


def model(adapter: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True))
    return peft.get_peft_model(base, ADAPTER) if adapter else base


def made(on: torch.nn.Module, *overrides: str) -> Any:
    config = config_of(*overrides, "train.learning_rate=1e-2", "optimizer.weight_decay=0.1", "quant=none")
    return build(config, on, set(Trainer.get_decay_parameter_names(None, on)))  # type: ignore[arg-type]


def grouped(optimizer: Any, on: torch.nn.Module) -> list[tuple[set[str], float, float]]:
    names = {id(parameter): name for name, parameter in on.named_parameters()}
    return [
        ({names[id(p)] for p in group["params"]}, group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        if group["params"]
    ]


@pytest.mark.parametrize("kind", ["adamw", "lion", "adafactor zero=stage0", "adamw_8bit", "paged_adamw_8bit mode=plan"])
def test_the_groups_are_those_of_the_trainer(kind: str) -> None:
    on = model(adapter=False)
    optimizer = made(on, *f"optimizer={kind} lora=none".split())
    theirs = Trainer.get_decay_parameter_names(None, on)  # type: ignore[arg-type]
    (decayed, rate, decay), (rest, same, none) = grouped(optimizer, on)
    assert decayed == set(theirs) and decayed | rest == {name for name, _ in on.named_parameters()}
    assert (rate, decay, same, none) == (1e-2, 0.1, 1e-2, 0.0)
    expected = {"adamw": torch.optim.AdamW, "lion": Lion32bit, "adafactor": torch.optim.Adafactor}
    assert type(optimizer) is expected.get(kind.split()[0], AdamW8bit)
    assert getattr(optimizer, "is_paged", False) is kind.startswith("paged")


def test_lora_plus_has_the_groups_and_rates_of_peft() -> None:
    on = model(adapter=True)
    theirs = peft.optimizers.create_loraplus_optimizer(
        on, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=4.0, loraplus_weight_decay=0.1
    )
    assert grouped(made(on, "optimizer.lora_plus=4"), on) == grouped(theirs, on)


def test_muon_has_the_matrices_between_the_embedding_and_the_head() -> None:
    full, adapted = model(adapter=False), model(adapter=True)
    for on, extra, expected in ((full, ["lora=none"], 7), (adapted, ["optimizer.lora_plus=4"], 2)):
        optimizer = made(on, "optimizer=muon", *extra)
        assert isinstance(optimizer, Muon) and optimizer.momentum == 0.95
        groups = [group for group in optimizer.param_groups if group["muon"]]
        names = {id(parameter): name for name, parameter in on.named_parameters()}
        matrices = [names[id(p)] for group in groups for p in group["params"]]
        assert len(matrices) == expected and not any("lm_head" in name or "embed" in name for name in matrices)
        trained = {id(p) for p in on.parameters() if p.requires_grad}
        assert {id(p) for group in optimizer.param_groups for p in group["params"]} == trained


@pytest.mark.gpu
def test_paged_moments_step_as_those_that_are_not(tmp_path: Path) -> None:
    found = []
    for kind in ("adamw_8bit", "paged_adamw_8bit"):
        torch.manual_seed(0)
        on = torch.nn.Linear(512, 512).cuda()
        optimizer = made(on, f"optimizer={kind}", "lora=none")
        for _ in range(3):
            on(torch.ones(2, 512, device="cuda")).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(on.weight.detach())
    assert getattr(optimizer.state[on.weight]["state1"], "is_paged", False)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
