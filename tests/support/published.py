"""Small checkpoints in the published layouts with random weights, and strings to test a tokenizer with."""

import argparse
import hashlib
import importlib
import inspect
import io
import json
import random
import textwrap
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

from hydraft.models.convert import shards

ROOT = Path(__file__).parents[2]

CHATGLM2: dict[str, Any] = {
    "model_type": "chatglm", "architectures": ["ChatGLMModel"], "add_bias_linear": False, "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0, "ffn_hidden_size": 96,
    "hidden_size": 64, "kv_channels": 16, "layernorm_epsilon": 1e-05, "multi_query_attention": True,
    "multi_query_group_num": 2, "num_attention_heads": 4, "num_layers": 3, "original_rope": True,
    "padded_vocab_size": 3016, "post_layer_norm": True, "rmsnorm": True, "seq_length": 256, "torch_dtype": "float16",
    "tie_word_embeddings": False, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip

CHATGLM3 = CHATGLM2 | {"_name_or_path": "THUDM/chatglm3-6b", "rope_ratio": 50}

BAICHUAN2: dict[str, Any] = {
    "model_type": "baichuan", "architectures": ["BaichuanForCausalLM"], "hidden_act": "silu", "hidden_size": 64,
    "intermediate_size": 96, "max_position_embeddings": 256, "model_max_length": 256, "num_attention_heads": 4,
    "num_hidden_layers": 3, "rms_norm_eps": 1e-06, "tie_word_embeddings": False, "torch_dtype": "float16",
    "vocab_size": 3016, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "z_loss_weight": 0,
}  # fmt: skip

INTERNLM2: dict[str, Any] = {
    "model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"], "bias": False, "hidden_act": "silu",
    "hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 32, "num_attention_heads": 8,
    "num_hidden_layers": 3, "num_key_value_heads": 2, "rms_norm_eps": 1e-05, "rope_theta": 1000000,
    "rope_scaling": {"type": "dynamic", "factor": 2.0}, "tie_word_embeddings": False, "torch_dtype": "float16",
    "vocab_size": 3016, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip

QKV = "transformer.encoder.layers.1.self_attention.query_key_value.weight"
Tensors = dict[str, torch.Tensor]

BAICHUAN1 = BAICHUAN2 | {"architectures": ["BaiChuanForCausalLM"]}

RESERVED = (*(f"<reserved_{index}>" for index in range(300)), "▁▁▁▁", "▁▁", "<h1>", "é")
"""User-defined pieces, as in Baichuan; they include 195 and 196."""


def as_shard(tensors: Mapping[str, torch.Tensor]) -> shards.Shard:
    """Tensors in memory, in the form that exports read."""
    return shards.Shard(list(tensors), lambda name: shards.described(tensors[name]), tensors.__getitem__)


def chatglm2_tensors(seed: int = 0, dtype: torch.dtype = torch.float16, **changes: Any) -> dict[str, torch.Tensor]:
    """Random weights with their published names."""
    c = CHATGLM2 | changes
    hidden, inner, vocabulary = c["hidden_size"], c["ffn_hidden_size"], c["padded_vocab_size"]
    width = (c["num_attention_heads"] + 2 * c["multi_query_group_num"]) * c["kv_channels"]
    shapes: dict[str, tuple[int, ...]] = {"embedding.word_embeddings.weight": (vocabulary, hidden)}
    shapes["rotary_pos_emb.inv_freq"] = (c["kv_channels"] // 4,)
    for index in range(c["num_layers"]):
        shapes |= {
            f"encoder.layers.{index}.{name}": shape
            for name, shape in {
                "input_layernorm.weight": (hidden,),
                "self_attention.query_key_value.weight": (width, hidden),
                "self_attention.query_key_value.bias": (width,),
                "self_attention.dense.weight": (hidden, c["num_attention_heads"] * c["kv_channels"]),
                "post_attention_layernorm.weight": (hidden,),
                "mlp.dense_h_to_4h.weight": (2 * inner, hidden),
                "mlp.dense_4h_to_h.weight": (hidden, inner),
            }.items()
        }
    shapes |= {"encoder.final_layernorm.weight": (hidden,), "output_layer.weight": (vocabulary, hidden)}
    return _random({f"transformer.{name}": shape for name, shape in shapes.items()}, seed, dtype)


def baichuan_tensors(
    seed: int = 0, dtype: torch.dtype = torch.float16, inverse_frequencies: bool = False, **changes: Any
) -> dict[str, torch.Tensor]:
    """Random weights with their published names; those of Baichuan-7B include the rotary frequencies."""
    c = BAICHUAN2 | changes
    hidden, inner, vocabulary = (c[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (vocabulary, hidden)}
    for index in range(c["num_hidden_layers"]):
        shapes |= {
            f"layers.{index}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (hidden,),
                "self_attn.W_pack": (3 * hidden, hidden),
                "self_attn.o_proj": (hidden, hidden),
                "post_attention_layernorm": (hidden,),
                "mlp.gate_proj": (inner, hidden),
                "mlp.up_proj": (inner, hidden),
                "mlp.down_proj": (hidden, inner),
            }.items()
        }
        if inverse_frequencies:
            shapes[f"layers.{index}.self_attn.rotary_emb.inv_freq"] = (hidden // c["num_attention_heads"] // 2,)
    shapes["norm.weight"] = (hidden,)
    named = {f"model.{name}": shape for name, shape in shapes.items()} | {"lm_head.weight": (vocabulary, hidden)}
    return _random(named, seed, dtype)


def internlm2_tensors(seed: int = 0, dtype: torch.dtype = torch.float16, **changes: Any) -> dict[str, torch.Tensor]:
    """Random weights with their published names."""
    c = INTERNLM2 | changes
    hidden, inner, vocabulary = (c[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    width = (c["num_attention_heads"] + 2 * c["num_key_value_heads"]) * hidden // c["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.tok_embeddings.weight": (vocabulary, hidden)}
    for index in range(c["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{index}.{name}": shape
            for name, shape in {
                "attention_norm.weight": (hidden,),
                "attention.wqkv.weight": (width, hidden),
                "attention.wo.weight": (hidden, hidden),
                "ffn_norm.weight": (hidden,),
                "feed_forward.w1.weight": (inner, hidden),
                "feed_forward.w3.weight": (inner, hidden),
                "feed_forward.w2.weight": (hidden, inner),
            }.items()
        }
        if c["bias"]:
            shapes |= {
                f"model.layers.{index}.attention.{name}.bias": (rows,)
                for name, rows in (("wqkv", width), ("wo", hidden))
            }
    shapes |= {"model.norm.weight": (hidden,), "output.weight": (vocabulary, hidden)}
    return _random(shapes, seed, dtype)


def _random(shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=generator) * 0.2 + (1.0 if "norm" in name else 0.0)).to(dtype)
        for name, shape in shapes.items()
    }


def save(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    model: bytes,
    suffix: str = "safetensors",
    count: int = 3,
) -> Path:
    """Write a published checkpoint: ``count`` shards and an index, or one file."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(model)
    stem = {"safetensors": "model", "bin": "pytorch_model"}[suffix]
    names = list(tensors)
    placed = {}
    for index in range(count):
        file = f"{stem}-{index + 1:05d}-of-{count:05d}.{suffix}" if count > 1 else f"{stem}.{suffix}"
        part = {name: tensors[name] for name in names[index * len(names) // count : (index + 1) * len(names) // count]}
        if suffix == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
        placed |= dict.fromkeys(part, file)
    if count > 1:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


@cache
def corpus() -> list[str]:
    """Lines of Chinese (the project's records), and of English and code (the standard library)."""
    records = json.loads((ROOT / "data/handwritten.json").read_text(encoding="utf-8"))
    chinese = [line for record in records for value in record.values() for line in str(value).splitlines()]
    return chinese + [line for module in (argparse, textwrap) for line in inspect.getsource(module).splitlines()]


@cache
def sentencepiece_model(dummy_prefix: bool = True, defined: tuple[str, ...] = (), size: int = 3000) -> bytes:
    """A SentencePiece model like the published ones: BPE, byte fallback, spaces, separate digits, no normalization."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=made,
        vocab_size=size,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=dummy_prefix,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        split_digits=True,
        character_coverage=0.98,
        user_defined_symbols=list(defined),
        num_threads=1,
        minloglevel=2,
    )
    return made.getvalue()


def with_unused(model: bytes, count: int, kind: int = 4) -> bytes:
    """A SentencePiece model with ``count`` unused tokens at its end, as InternLM2's, user-defined or of another ``kind``."""
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model)
    for index in range(count):
        proto.pieces.add(piece=f"[UNUSED_TOKEN_{index + 1}]", score=0.0, type=kind)
    return bytes(proto.SerializeToString())


SCRAPS = (
    "你好", "的", "，", "。", "：", "中华人民共和国", "a", "The ", "philosophy", "people", "def f(x):", "return ", "x += 1",
    "😀", "👨‍👩‍👧‍👦", "🇨🇳", "é", "e\u0301", "𠮷", "\u3000", "\u200b", "\ufeff", "\xa0", "\x00", "\n", "\r\n", "\t", " ", "  ",
    "▁", "▁▁", "0", "1234", "3.14", "AAAA", "<s>", "</s>", "<unk>", "<0x41>", "[gMASK]", "<sop>", "[MASK]", "sop", "eop",
    "<reserved_5>", "<reserved_192>", "<reserved_", "<h1>", "[Round 1]\n\n问：",
)  # fmt: skip


def fuzz(count: int, seed: int = 0) -> list[str]:
    """Random mixtures of Chinese, English, code, emoji, whitespace and markers."""
    generator = random.Random(seed)
    return [_string(generator) for _ in range(count)]


def _string(generator: random.Random) -> str:
    text = ""
    for _ in range(generator.randint(0, 24)):
        kind = generator.random()
        if kind < 0.5:
            text += generator.choice(SCRAPS)
        elif kind < 0.8:
            line = generator.choice(corpus())
            start = generator.randint(0, len(line))
            text += line[start : start + generator.randint(0, 14)]
        elif kind < 0.9:
            first, last = generator.choice([(0x4E00, 0x9FFF), (0x20, 0x2FFF), (0x1F300, 0x1F6FF)])
            text += chr(generator.randint(first, last))
        else:
            text += " " * generator.randint(1, 9)
    return text


def native_tokenizer(family: str, folder: Path) -> Any:
    """The tokenizer of a converted checkpoint, saved and loaded as in a run."""
    defined = {"chatglm2": (), "baichuan": RESERVED}[family]
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(dummy_prefix=not defined, defined=defined))
    config = {"chatglm2": CHATGLM2, "baichuan": BAICHUAN2}[family]
    importlib.import_module(f"hydraft.models.families.{family}").tokenizer(folder, config).save_pretrained(
        folder / "native"
    )
    return AutoTokenizer.from_pretrained(folder / "native")


def contents(folder: Path) -> dict[str, str]:
    """The sha256 of each file."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def leftovers(target: Path) -> list[str]:
    """Files that a conversion left next to its target."""
    return sorted(file.name for file in target.parent.glob(f".{target.name}.*"))


def interrupt(*_: Any) -> None:
    """Raise KeyboardInterrupt, as Ctrl-C does."""
    raise KeyboardInterrupt
