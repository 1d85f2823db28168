"""A checkpoint that is stored quantised is followed, dequantised or refused, by its files alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hydraft.config.choices import QuantKind
from hydraft.config.model import ModelConfig
from hydraft.config.schema import QuantConfig
from hydraft.errors import ConfigError
from hydraft.models import prepare, stored_quant

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8 = {"quant_method": "bitsandbytes", "load_in_8bit": True}
NONE = QuantConfig(QuantKind.none)


def checkpoint(folder: Path, *, weight: torch.dtype = torch.bfloat16, **config: Any) -> ModelConfig:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 8} | config))
    name = "model.layers.0.self_attn.q_proj.weight"
    save_file({name: torch.zeros(8, 8).to(weight)}, folder / "model.safetensors", {"format": "pt"})
    return ModelConfig(name="auto", path=str(folder))


@pytest.mark.parametrize(
    ("recorded", "requested", "kind"),
    [
        (NF4, QuantKind.none, QuantKind.nf4),
        (NF4, QuantKind.nf4, QuantKind.nf4),
        ({**NF4, "quant_method": None}, QuantKind.none, QuantKind.nf4),  # before quant_method was written
        (INT8, QuantKind.none, QuantKind.int8),
        (INT8, QuantKind.int8, QuantKind.int8),
    ],
)
def test_a_bitsandbytes_checkpoint_decides_the_quant_section(
    recorded: dict[str, Any], requested: QuantKind, kind: QuantKind, tmp_path: Path
) -> None:
    model = checkpoint(tmp_path, quantization_config=recorded)
    quant, note = stored_quant.follow(model, QuantConfig(requested))
    assert quant.kind is kind
    assert note is not None and f"quant={kind.value}" in note
    stored_quant.check(model, quant)


@pytest.mark.parametrize("double", [False, True])
def test_double_quantisation_is_that_of_the_checkpoint(double: bool, tmp_path: Path) -> None:
    model = checkpoint(tmp_path, quantization_config={**NF4, "bnb_4bit_use_double_quant": double})
    quant, _ = stored_quant.follow(model, QuantConfig(QuantKind.nf4, not double))
    assert quant.double_quant is double


@pytest.mark.parametrize(
    ("recorded", "requested", "stored"), [(NF4, QuantKind.int8, "nf4"), (INT8, QuantKind.nf4, "int8")]
)
def test_another_quantisation_is_refused(
    recorded: dict[str, Any], requested: QuantKind, stored: str, tmp_path: Path
) -> None:
    model = checkpoint(tmp_path, quantization_config=recorded)
    with pytest.raises(ConfigError, match=rf"quant={requested.value}: .* bitsandbytes {stored}: use quant={stored}"):
        stored_quant.follow(model, QuantConfig(requested))


@pytest.mark.parametrize(
    "recorded",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4, "version": "gemm"},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {"quant_method": "hqq", "quant_config": {}},
        {"quant_method": "torchao", "quant_type": "int4_weight_only"},
        {"quant_method": "fbgemm_fp8"},
        {"quant_method": "of_next_year"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    ],
    ids=lambda recorded: str(recorded["quant_method"]),
)
@pytest.mark.parametrize("key", ["quantization_config", "compression_config", "text_config"])
def test_what_cannot_be_trained_is_refused(recorded: dict[str, Any], key: str, tmp_path: Path) -> None:
    found = {"quantization_config": recorded} if key == "text_config" else recorded
    model = checkpoint(tmp_path / "Some-7B-Instruct-GPTQ-Int4", **{key: found})
    for check in (prepare.check, lambda model: stored_quant.follow(model, QuantConfig(QuantKind.nf4))):
        with pytest.raises(
            ConfigError, match=r"not supported: give the unquantised .*/Some-7B-Instruct\), with quant=nf4"
        ):
            check(model)


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen2.5-7B-Instruct"),
        ("Qwen2.5-7B-Instruct-AWQ", "Qwen2.5-7B-Instruct"),
        ("Meta-Llama-3.1-8B-Instruct-quantized.w4a16", "Meta-Llama-3.1-8B-Instruct"),
        ("Llama-3-8B-HQQ-4bit", "Llama-3-8B"),
        ("mine", None),
    ],
)
def test_the_message_names_the_checkpoint_that_it_was_made_from(
    name: str, original: str | None, tmp_path: Path
) -> None:
    model = checkpoint(tmp_path / name, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ConfigError) as caught:
        stored_quant.refuse(model)
    assert ("by its name" in str(caught.value)) is (original is not None)
    assert original is None or f"{tmp_path / original})" in str(caught.value)


@pytest.mark.parametrize("method", ["fp8", "mxfp8", "mxfp4"])
@pytest.mark.parametrize("kind", QuantKind)
def test_what_is_dequantised_may_be_quantised_anew(method: str, kind: QuantKind, tmp_path: Path) -> None:
    model = checkpoint(tmp_path, quantization_config={"quant_method": method})
    quant, note = stored_quant.follow(model, QuantConfig(kind))
    assert quant.kind is kind
    assert note is not None and "dequantised" in note
    stored_quant.check(model, quant)


@pytest.mark.parametrize(
    ("weight", "beside"), [(torch.float8_e4m3fn, ""), (torch.uint8, ""), (torch.int32, "quantize_config.json")]
)
def test_packed_weights_without_a_record_are_refused(weight: torch.dtype, beside: str, tmp_path: Path) -> None:
    """transformers would read FP8 numbers without their scales, and say nothing."""
    model = checkpoint(tmp_path, weight=weight)
    if beside:
        (tmp_path / beside).write_text("{}")
    with pytest.raises(ConfigError, match=r"stored as gptq" if beside else r"q_proj\.weight in model\.safetensors"):
        prepare.check(model)


def test_an_unquantised_checkpoint_is_left_alone(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, quantization_config=None)
    assert stored_quant.stored(model) is None
    assert stored_quant.follow(model, QuantConfig(QuantKind.nf4)) == (QuantConfig(QuantKind.nf4), None)


def test_a_model_in_the_hubs_cache_is_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    base = tmp_path / "models--owner--name-bnb-4bit"
    checkpoint(base / "snapshots" / "c0ffee", quantization_config=NF4)
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text("c0ffee")
    quant, note = stored_quant.follow(ModelConfig(name="auto", path="owner/name-bnb-4bit"), NONE)
    assert quant.kind is QuantKind.nf4 and note is not None
