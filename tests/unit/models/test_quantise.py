"""The quantised copy of a checkpoint equals, bit by bit, what transformers and a run quantise as they load it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DeepseekV3Config,
    GPT2Config,
    Llama4TextConfig,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
)

import stored
from hydraft.config.choices import Precision, QuantKind
from hydraft.config.model import ModelConfig
from hydraft.config.schema import QuantConfig
from hydraft.models import experts, quantise
from hydraft.models.load import load_base
from hydraft.models.quant import DTYPES
from hydraft.models.quantised_copy import Job

SHAPE: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 3072,
    "num_key_value_heads": 2, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
EXPERTS: dict[str, Any] = {
    "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "q_lora_rank": 32,
    "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32, "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}  # fmt: skip
SMALL = {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 3072, "eos_token_id": 2, "pad_token_id": 0}
CONFIGS: dict[str, Any] = {
    "llama, tied": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama, untied, odd sizes": LlamaConfig(**SHAPE | {"hidden_size": 100, "intermediate_size": 190, "head_dim": 25}),
    "biases": Qwen2Config(**SHAPE),
    "experts that are merged": MixtralConfig(**SHAPE, num_local_experts=4),
    "experts, and a buffer": DeepseekV3Config(**SHAPE | EXPERTS),
    "transposed": GPT2Config(**SMALL, bos_token_id=1),
}


def bits(model: Any) -> dict[str, Any]:
    """Every tensor, those of the constants included, as bytes: codes may be seen as numbers that are none."""
    return {
        name: (tensor.dtype, tensor.contiguous().flatten().view(torch.uint8))
        for name, tensor in model.state_dict().items()
    }


def without_experts(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if ".experts." not in name}


def assert_equal(found: Any, expected: Any) -> None:
    ours, theirs = without_experts(bits(found)), without_experts(bits(expected))
    assert ours.keys() == theirs.keys()
    for name, (dtype, tensor) in theirs.items():
        assert ours[name][0] == dtype and torch.equal(ours[name][1], tensor), name


def copied(base: Path, target: Path, double: bool, precision: Precision) -> list[dict[str, Any]]:
    """Make the copy; returns what was reported."""
    target.mkdir()
    events: list[dict[str, Any]] = []
    quantise.write(
        Job(str(base), "its name", str(target), double, precision.value), lambda **event: events.append(event)
    )
    return events


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("double", "precision"), [(True, Precision.bf16), (False, Precision.fp32)])
def test_a_copy_equals_what_is_quantised_on_loading(
    name: str, double: bool, precision: Precision, tmp_path: Path
) -> None:
    base, copy, dtype = stored.save(tmp_path / "base", CONFIGS[name]), tmp_path / "copy", DTYPES[precision]
    events = copied(base, copy, double, precision)
    assert events and events[0]["done"] <= events[0]["total"]
    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
    )
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, quantization_config=quantisation)
    assert_equal(AutoModelForCausalLM.from_pretrained(copy, dtype=dtype), theirs)
    ours, own = (
        load_base(ModelConfig(name="mine", path=str(folder)), QuantConfig(QuantKind.nf4, double), precision)
        for folder in (copy, base)
    )
    assert_equal(ours, own)
    unquantised = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    for path, module, weight in experts.stacked(ours):  # bitsandbytes quantises no experts by itself
        value = unquantised.get_parameter(path)
        codes = quantize_4bit(value, blocksize=64, compress_statistics=double, quant_type="nf4")
        assert torch.equal(experts.weight(module, weight), dequantize_4bit(*codes)), path
        assert torch.equal(experts.weight(own.get_submodule(path.rpartition(".")[0]), weight), dequantize_4bit(*codes))
    assert ("experts" in name) == any(experts.stacked(ours))
    assert ours.name_or_path == "its name"  # peft records it
    assert (
        AutoTokenizer.from_pretrained(copy)("a")["input_ids"] == AutoTokenizer.from_pretrained(base)("a")["input_ids"]
    )


def test_what_transformers_would_not_find_again_is_refused(tmp_path: Path) -> None:
    """Of Llama 4 it splits the experts of a checkpoint that is quantised, and not of one that it quantises."""
    config = Llama4TextConfig(
        **SHAPE, head_dim=32, num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=192
    )
    with pytest.raises(ValueError, match="transformers does not load what is quantised"):
        copied(stored.save(tmp_path / "base", config), tmp_path / "copy", True, Precision.bf16)


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    base = stored.plain(tmp_path / "base", num_hidden_layers=1)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(ValueError, match=r"model.layers.1.*is in none of its weight files"):
        copied(base, tmp_path / "copy", True, Precision.bf16)


def test_files_of_bounded_size_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "SHARD", 100_000)
    base = stored.plain(tmp_path / "base")
    copied(base, tmp_path / "copy", True, Precision.bf16)
    count = len(list((tmp_path / "copy").glob("*.safetensors")))
    assert count > 2
    index = json.loads((tmp_path / "copy/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == count
    section = ModelConfig(name="mine", path=str(tmp_path / "copy"))
    own = ModelConfig(name="mine", path=str(base))
    assert_equal(*(load_base(one, QuantConfig(QuantKind.nf4), Precision.bf16) for one in (section, own)))
