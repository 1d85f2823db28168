"""Adapters on the experts of a mixture, which peft makes of all-linear, and mixtures that are exported."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

import stored
from hydraft.config.choices import ExportQuant, QuantKind
from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError
from hydraft.infer.export import quantise
from hydraft.infer.load import load
from hydraft.infer.resolve import find
from using import adapter

SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 3072,
    "num_local_experts": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A run's folder with an adapter on every projection of the experts."""
    torch.manual_seed(0)
    base = stored.save(tmp_path / "base", MixtralConfig(**SHAPE))
    return adapter(tmp_path / "run", "model=auto", f"model.path={base}", "quant=none", base=base)


def test_an_adapter_on_experts_is_used_over_unquantised_ones(made: Path) -> None:
    options = InferConfig(run=str(made))
    (source,) = find(options)
    ids = torch.tensor([[1, 40, 41, 42]])
    with torch.no_grad():
        found = load([source], options).model(input_ids=ids).logits
        base = MixtralForCausalLM.from_pretrained(source.model.path, dtype=torch.float32)(input_ids=ids).logits
    assert (found - base).abs().max() > 1e-3
    source.quant.kind = QuantKind.nf4
    with pytest.raises(ConfigError, match=r"adapts experts .*mlp\.experts.*: use quant=none"):
        load([source], options)


def test_an_export_that_would_leave_the_experts_in_16_bits_is_refused(made: Path) -> None:
    options = InferConfig(run=str(made))
    (source,) = find(options)
    options.export.quant = ExportQuant.fp8
    with pytest.raises(ConfigError, match=r"export.quant=fp8: .* the experts of this model, .* would stay in 16 bits"):
        quantise.request(source, options, source.model)
