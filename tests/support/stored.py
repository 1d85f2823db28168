"""Small checkpoints that are stored quantised, each by transformers or by the published formula."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GptOssConfig, LlamaConfig

from hydraft.system.source_tree import TINY

BNB = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "nf4 of fp32": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "int8": {"load_in_8bit": True},
}


def plain(folder: Path, **changed: Any) -> Path:
    """A random two-layer Llama in bf16 with the embedded model's tokenizer."""
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "vocab_size": 3072, "tie_word_embeddings": True, "initializer_range": 0.1}
    return save(folder, LlamaConfig(**shape | more | changed, eos_token_id=2, pad_token_id=0))


def save(folder: Path, config: Any) -> Path:
    """A random model of ``config`` in bf16 with the embedded model's tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TINY / name, folder / name)
    return folder


def bitsandbytes(source: Path, folder: Path, kind: str) -> Path:
    """``source``, stored by bitsandbytes as transformers saves it."""
    stored = BitsAndBytesConfig(**BNB[kind])
    dtype = torch.float32 if kind == "nf4 of fp32" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=stored, dtype=dtype)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TINY / name, folder / name)
    return folder


def fp8(source: Path, block: int = 128) -> Path:
    """``source`` rewritten with blocks of float8, each scaled to its largest number (DeepSeek-V3, section 3.3)."""
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight = tensors[name].float()
        rows, columns = weight.shape
        scales = torch.zeros(-(-rows // block), -(-columns // block))
        codes = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn)
        for row in range(scales.shape[0]):
            for column in range(scales.shape[1]):
                part = (slice(row * block, (row + 1) * block), slice(column * block, (column + 1) * block))
                scales[row, column] = weight[part].abs().max() / 448
                codes[part] = (weight[part] / scales[row, column]).to(torch.float8_e4m3fn)
        tensors |= {name: codes, f"{name}_scale_inv": scales}
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    record(source, {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]})
    return source


def mxfp4(folder: Path) -> Path:
    """A random two-layer gpt-oss whose experts are stored in MXFP4."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_local_experts": 4, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 3072, "num_experts_per_tok": 2}
    save(folder, GptOssConfig(**shape | heads, eos_token_id=2, pad_token_id=0))
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        codes = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        exponents = torch.randint(118, 124, (experts, outputs, inputs // 32), dtype=torch.uint8)
        tensors |= {f"{name}_blocks": codes, f"{name}_scales": exponents}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    record(folder, {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]})
    return folder


def record(folder: Path, quantisation: dict[str, Any]) -> None:
    """Write a quantization_config into a folder's config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantisation}))
