"""Merged weights are stored as transformers' save_pretrained stores them, and a model computes in another type than it is stored in."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from merging import merged_whole
from rich.console import Console
from safetensors.torch import load_file
from test_merge import trained
from transformers import AutoModelForCausalLM, MixtralConfig, Phi3Config, Qwen3_5TextConfig

import stored
from hydraft.config.choices import Precision, QuantKind
from hydraft.config.infer import InferConfig
from hydraft.config.model import ModelConfig
from hydraft.config.schema import QuantConfig
from hydraft.infer.export import compare, merge, native_layout, placement
from hydraft.infer.load import check_fit
from hydraft.infer.resolve import find
from hydraft.models.load import load_base

SHAPE: dict[str, Any] = {
    "vocab_size": 3072, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LINEAR_ATTENTION = {
    "head_dim": 16, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "lora"),
    [
        (MixtralConfig(**SHAPE, num_local_experts=4), {"target_modules": "all-linear"}),  # its experts, too
        (Phi3Config(**SHAPE), {"target_modules": ["qkv_proj", "down_proj"]}),
    ],
    ids=["experts", "fused"],
)
def test_weights_are_stored_under_the_names_of_the_checkpoint(
    config: Any, lora: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = stored.save(tmp_path / "base", config)
    adapter = trained(tmp_path / "adapter", base, **lora)
    (source,) = find(InferConfig(run=str(adapter)))
    section = ModelConfig(name="base", path=str(base))
    check_fit(source, section)
    whole = merged_whole(torch.nn.Module(), source, section, Precision.fp32)
    whole.save_pretrained(tmp_path / "whole")
    monkeypatch.setattr(native_layout, "SHARD", 200_000)
    merged = merge.merged(torch.nn.Module(), source, section, Precision.fp32)
    (tmp_path / "out").mkdir()
    native_layout.write(merged, torch.float32, tmp_path / "out", Console(quiet=True))
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    files = sorted((tmp_path / "out").glob("model-*.safetensors"))
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert expected.keys() == found.keys() and all(torch.equal(found[name], value) for name, value in expected.items())
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(files) > 2 and index["weight_map"].keys() == expected.keys()
    assert index["metadata"]["total_parameters"] == sum(value.numel() for value in expected.values())
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and loaded.dtype is torch.float32


@pytest.mark.parametrize(
    "config",
    [MixtralConfig(**SHAPE), Qwen3_5TextConfig(**SHAPE, **LINEAR_ATTENTION)],
    ids=["experts", "linear attention"],
)
def test_a_model_computes_in_another_type_than_its_weights_are_stored_in(config: Any, tmp_path: Path) -> None:
    section = ModelConfig(name="base", path=str(stored.save(tmp_path, config)))
    kept, wide = (load_base(section, QuantConfig(), precision).eval() for precision in (Precision.bf16, Precision.fp32))
    prompts = [[1, 5, 9, 300, 17, 4]]
    with compare.cast(kept, torch.float32):
        found = compare.logits(kept, prompts)
    assert torch.equal(found[0], compare.logits(wide, prompts)[0])
    assert {parameter.dtype for parameter in kept.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "quant",
    [QuantConfig(QuantKind.nf4), QuantConfig(QuantKind.nf4, False), QuantConfig(QuantKind.int8)],
    ids=["double", "single", "int8"],
)
def test_the_size_of_a_model_is_that_of_its_tensors(quant: QuantConfig, tmp_path: Path) -> None:
    section = ModelConfig(name="base", path=str(stored.plain(tmp_path / "base")))
    loaded = load_base(section, quant, Precision.bf16)
    state = loaded.state_dict()
    tables = sum(value.nbytes for name, value in state.items() if "quant_map" in name or "bitsandbytes__" in name)
    held = sum({value.data_ptr(): value.nbytes for value in state.values()}.values()) - tables
    sizes = placement.sizes(section, quant, Precision.bf16, Precision.fp32)
    assert sizes.trained == pytest.approx(held, rel=0.01)
    assert sizes.merged == sum(
        4 * parameter.numel() for parameter in load_base(section, QuantConfig(), Precision.bf16).parameters()
    )


def test_a_model_that_does_not_fit_on_the_gpu_is_computed_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement.device_for("auto", 1 << 50) == (torch.device("cpu"), None)  # there is no GPU
    monkeypatch.setattr(placement, "device_of", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (22 << 30, 24 << 30))
    assert placement.device_for("auto", 22 << 30) == (torch.device("cuda", 0), None)
    assert placement.device_for("cuda", 37 << 30) == (torch.device("cuda", 0), None)
    device, notice = placement.device_for("auto", 37 << 30)
    assert device == torch.device("cpu")
    assert notice is not None and notice.startswith(
        "takes 37.0 GiB, and 22.0 GiB are free on the GPU: computed on the CPU"
    )
