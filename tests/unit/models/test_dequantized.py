"""FP8 and MXFP4 checkpoints become bf16 ones: compared with transformers' own dequantisation, and with the formula."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, Mxfp4Config
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import stored
from hydraft.config.choices import Precision, QuantKind
from hydraft.config.model import ModelConfig
from hydraft.config.schema import QuantConfig
from hydraft.errors import ConfigError
from hydraft.models import dequantized, prepare
from hydraft.models.load import load_base


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path / "cache"))


def made(source: Path) -> Path:
    return Path(prepare.native(ModelConfig(name="mine", path=str(source)), 42).path)


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_a_checkpoint_equals_what_transformers_dequantises(kind: str, tmp_path: Path) -> None:
    source = stored.fp8(stored.plain(tmp_path / "source")) if kind == "fp8" else stored.mxfp4(tmp_path / "source")
    theirs = FineGrainedFP8Config(dequantize=True) if kind == "fp8" else Mxfp4Config(dequantize=True)
    expected = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, quantization_config=theirs)
    target = made(source)
    assert "quantization_config" not in json.loads((target / "config.json").read_text())
    ours = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16)
    assert not hasattr(ours.config, "quantization_config")
    repeated = ours.state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(repeated[name], tensor), name
    assert made(source) == target  # the second time it is there
    quantised = load_base(ModelConfig(name="mine", path=str(target)), QuantConfig(QuantKind.nf4), Precision.fp32)
    assert "Linear4bit" in {type(module).__name__ for module in quantised.modules()}


@pytest.mark.parametrize("shape", [(192, 320), (576, 128), (100, 100), (3, 192, 130)])
def test_blocks_at_the_edge_are_partial(shape: tuple[int, ...]) -> None:
    """transformers 5.17 takes 192 / 2 rows as a block of 192 rows in blocks of 128, and says nothing."""
    weight = torch.randn(shape).to(torch.float8_e4m3fn)
    rows, columns = shape[-2:]
    scale = torch.rand(*shape[:-2], -(-rows // 128), -(-columns // 128))
    of_row, of_column = torch.arange(rows) // 128, torch.arange(columns) // 128
    expected = weight.float() * scale[..., of_row, :][..., of_column]
    assert torch.equal(dequantized.fp8(weight, scale, (128, 128)), expected.to(torch.bfloat16))


def test_one_scale_for_a_tensor_and_exponents_of_microscaling() -> None:
    weight = torch.randn(4, 64).to(torch.float8_e4m3fn)
    assert torch.equal(dequantized.fp8(weight, torch.tensor([2.5]), None), (weight.float() * 2.5).bfloat16())
    exponents = torch.randint(120, 130, (4, 2), dtype=torch.uint8)
    by_block = weight.float().view(4, 2, 32) * 2.0 ** (exponents.float() - 127).unsqueeze(-1)
    assert torch.equal(dequantized.fp8(weight, exponents, None), by_block.view(4, 64).bfloat16())


def test_mxfp4_equals_that_of_transformers() -> None:
    codes = torch.randint(0, 256, (3, 6, 2, 16), dtype=torch.uint8)
    exponents = torch.randint(100, 150, (3, 6, 2), dtype=torch.uint8)
    assert torch.equal(dequantized.mxfp4(codes, exponents), convert_moe_packed_tensors(codes, exponents))


@pytest.mark.parametrize("damage", ["no scale", "another shape", "another type"])
def test_a_checkpoint_that_does_not_fit_is_refused_and_leaves_nothing(damage: str, tmp_path: Path) -> None:
    source = stored.fp8(stored.plain(tmp_path / "source"))
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    if damage == "no scale":
        del tensors[f"{name}_scale_inv"]
    elif damage == "another shape":
        tensors[f"{name}_scale_inv"] = torch.ones(3, 1)
    else:
        tensors[name] = torch.zeros(128, 128, dtype=torch.int8)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    reason = {"no scale": "scale_inv is missing", "another shape": r"\(3, 1\), where", "another type": "data type I8"}
    with pytest.raises(ConfigError, match=reason[damage]):
        made(source)
    assert not [file for file in (tmp_path / "cache" / "models").iterdir() if file.is_dir()]
