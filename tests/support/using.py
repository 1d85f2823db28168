"""Adapters without a training run, and infer.py as a process that can be killed."""

from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import config_of, start_script
from hydraft.config.schema import Config, save_config
from hydraft.models import base_identity
from hydraft.system import files
from hydraft.system.source_tree import TINY

RECORDS = [
    {"id": f"q{number}", "task": "qa", "instruction": "回答问题。" + "好的，" * (number % 5), "input": f"{number}加一等于几？", "output": str(number + 1)}
    for number in range(11)
]  # fmt: skip


def adapter(folder: Path, *overrides: str, base: Path = TINY, seed: int = 0, **lora: Any) -> Path:
    """Write a run's folder with an adapter that changes the answers, as training would."""
    config: Config = config_of("train.precision=fp32", *overrides)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | lora
    adapted = peft.get_peft_model(model, peft.LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    target = folder / "adapter"
    adapted.save_pretrained(target)
    AutoTokenizer.from_pretrained(base).save_pretrained(target)
    files.write_json(target / base_identity.NAME, base_identity.of(config))
    save_config(config, folder / "config.yaml")
    return folder


def start(streams: Path, *arguments: str) -> Any:
    """Start infer.py; its output goes to files in ``streams``."""
    streams.mkdir(exist_ok=True)
    return start_script("infer.py", *arguments, streams=streams)
