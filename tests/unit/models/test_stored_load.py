"""Weights that are stored quantised are loaded as transformers loads them, and kept as a run keeps those it quantises itself."""

from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM

import stored
from hydraft.config.choices import Precision, QuantKind
from hydraft.config.model import ModelConfig
from hydraft.config.schema import QuantConfig
from hydraft.errors import ConfigError
from hydraft.models.load import load_base

PROMPT = torch.tensor([[1, 5, 9, 300, 17, 4]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored.plain(tmp_path_factory.mktemp("base") / "base")


@pytest.mark.parametrize("kind", ["nf4 of fp32", "int8"])
def test_logits_equal_those_of_plain_transformers(kind: str, base: Path, tmp_path: Path) -> None:
    """8-bit codes have the shape of the weights: with ``quantization_config=None`` transformers reads them as weights."""
    folder = stored.bitsandbytes(base, tmp_path, kind)
    section, quant = ModelConfig(name="mine", path=str(folder)), QuantConfig(QuantKind(kind.split()[0]))
    ours = load_base(section, quant, Precision.fp32).eval()
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for layer in theirs.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False  # it would round the scales to bf16
    with torch.no_grad():
        expected, found = theirs(PROMPT).logits, ours(PROMPT).logits
    assert _relative(found, expected) < (1e-5 if kind != "int8" else 0.03)  # int8 rounds the inputs of layers too


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).square().mean().sqrt() / expected.std())


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
def test_four_bit_weights_are_kept_as_a_run_keeps_its_own(precision: Precision, base: Path, tmp_path: Path) -> None:
    quant = QuantConfig(QuantKind.nf4, double_quant=True)
    folder = stored.bitsandbytes(base, tmp_path, "nf4")
    ours = load_base(ModelConfig(name="mine", path=str(folder)), quant, precision)
    own = load_base(ModelConfig(name="mine", path=str(base)), quant, precision)
    layers = {name: layer for name, layer in own.named_modules() if isinstance(layer, Linear4bit)}
    assert layers
    for name, expected in layers.items():
        layer = ours.get_submodule(name)
        assert layer.weight.dtype == expected.weight.dtype
        assert torch.equal(layer.weight.view(torch.uint8), expected.weight.view(torch.uint8))
        assert layer.compute_dtype == expected.compute_dtype
        assert layer.weight.quant_state.dtype == expected.weight.quant_state.dtype
        x = torch.randn(2, layer.in_features, dtype=expected.compute_dtype)
        rows = [x.clone().requires_grad_() for _ in range(2)]
        for row, one in zip(rows, (layer, expected), strict=True):
            one(row).float().square().sum().backward()
        assert rows[0].grad is not None and rows[1].grad is not None
        torch.testing.assert_close(rows[0].grad, rows[1].grad, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_that_a_rank_finds_quantised_is_refused(base: Path, tmp_path: Path) -> None:
    """Of a hub model, the config.json may be seen only here."""
    folder = stored.bitsandbytes(base, tmp_path, "nf4")
    with pytest.raises(ConfigError, match=r"quant=none: .* bitsandbytes nf4: use quant=nf4"):
        load_base(ModelConfig(name="mine", path=str(folder)), QuantConfig(QuantKind.none), Precision.fp32)
    stored.record(base_copy := stored.plain(tmp_path / "copy"), {"quant_method": "gptq", "bits": 4})
    with pytest.raises(ConfigError, match=r"stored as gptq \(4 bits\), which is not supported"):
        load_base(ModelConfig(name="mine", path=str(base_copy)), QuantConfig(QuantKind.nf4), Precision.fp32)
