"""A converted InternLM2 is equivalent to the published architecture, and its tokenizer and chats to the published ones.

Shapes: B sequences, T tokens, A heads, G key-value groups, D head size.
"""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file
from sentencepiece import sentencepiece_model_pb2
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM

from hydraft.errors import ConfigError
from hydraft.infer.export.published_layout import publish
from hydraft.models.convert.convert import convert
from hydraft.models.families import internlm2
from published import INTERNLM2, as_shard, fuzz, internlm2_tensors, save, sentencepiece_model, with_unused

UNUSED = 16
SPECIALS = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]
Weights = dict[str, torch.Tensor]
CASES: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "plain": {"rope_scaling": None},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "biases": {"bias": True, "num_key_value_heads": 4},
}


def tokenizer_model(dummy_prefix: bool = True, kind: int = 4) -> bytes:
    return with_unused(sentencepiece_model(dummy_prefix), UNUSED, kind)


def frequencies(config: dict[str, Any], length: int) -> torch.Tensor:
    """Rotary angles (T, D / 2) of modeling_internlm2.py: the base grows beyond the context, or positions are divided."""
    size = config["hidden_size"] // config["num_attention_heads"]
    scaling, base = config["rope_scaling"] or {}, float(config["rope_theta"])
    factor, context = scaling.get("factor", 1.0), config["max_position_embeddings"]
    if scaling.get("type") == "dynamic" and length > context:
        base *= ((factor * length / context) - (factor - 1)) ** (size / (size - 2))
    places = torch.arange(length) / (factor if scaling.get("type") == "linear" else 1.0)
    return places[:, None] * base ** (-torch.arange(0, size, 2) / size)


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotary positions on halves: (B, T, heads, D)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def attention(x: torch.Tensor, w: Weights, layer: str, config: dict[str, Any]) -> torch.Tensor:
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size, length = config["hidden_size"] // heads, x.shape[1]
    mixed = x @ w[f"{layer}.wqkv.weight"].T + w.get(f"{layer}.wqkv.bias", torch.zeros(()))
    mixed = mixed.unflatten(-1, (groups, heads // groups + 2, size))  # "b q (h gs d) -> b q h gs d"
    query = rotate(mixed[..., :-2, :].flatten(2, 3), frequencies(config, length))
    key = rotate(mixed[..., -2, :], frequencies(config, length)).repeat_interleave(heads // groups, dim=2)
    value = mixed[..., -1, :].repeat_interleave(heads // groups, dim=2)
    scores = torch.einsum("bqad,bkad->baqk", query, key) / math.sqrt(size)
    visible = torch.ones(length, length).tril().bool()
    mixed = torch.einsum("baqk,bkad->bqad", scores.masked_fill(~visible, -1e30).softmax(-1), value).flatten(2)
    return mixed @ w[f"{layer}.wo.weight"].T + w.get(f"{layer}.wo.bias", torch.zeros(()))


def reference(w: Weights, ids: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    """Logits (B, T, V) of ids (B, T), implemented as modeling_internlm2.py describes."""
    epsilon = config["rms_norm_eps"]
    x = w["model.tok_embeddings.weight"][ids]
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        x = x + attention(norm(x, w[f"{layer}.attention_norm.weight"], epsilon), w, f"{layer}.attention", config)
        inner = norm(x, w[f"{layer}.ffn_norm.weight"], epsilon)
        gate, up = (inner @ w[f"{layer}.feed_forward.{name}.weight"].T for name in ("w1", "w3"))
        x = x + (silu(gate) * up) @ w[f"{layer}.feed_forward.w2.weight"].T
    return norm(x, w["model.norm.weight"], epsilon) @ w["output.weight"].T


@pytest.mark.parametrize("length", [24, 48])  # within and beyond the context
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_the_published_architecture(tmp_path: Path, case: str, length: int) -> None:
    config = INTERNLM2 | CASES[case]
    tensors = internlm2_tensors(**CASES[case])
    convert(save(tmp_path / "published", config, tensors, tokenizer_model()), tmp_path / "native")
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "native", dtype=torch.float32, output_loading_info=True
    )
    assert isinstance(model, LlamaForCausalLM) and not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.randint(3, 3000, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference({name: value.float() for name, value in tensors.items()}, ids, config)
        found = model.eval()(input_ids=ids).logits
    assert expected.std() > 0.5
    assert (expected - found).abs().max() <= 1e-5 * expected.abs().max()
    publish(as_shard(model.half().state_dict()), tmp_path / "published", tmp_path)  # and back, bit for bit
    back = {name: value for file in tmp_path.glob("model-*.safetensors") for name, value in load_file(file).items()}
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], value) for name, value in tensors.items())


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no prefix"])
def prefix(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def converted(prefix: bool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("internlm2")
    convert(save(folder / "published", INTERNLM2, internlm2_tensors(), tokenizer_model(prefix)), folder / "native")
    return folder / "native"


@pytest.fixture(scope="module")
def tokenizer(converted: Path) -> Any:
    return AutoTokenizer.from_pretrained(converted)


@pytest.fixture(scope="module")
def pieces(prefix: bool) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece without the special tokens' pieces: InternLM2Converter of tokenization_internlm2_fast.py renames these."""
    return sentencepiece.SentencePieceProcessor(model_proto=with_unused(sentencepiece_model(prefix), UNUSED - 6))


def test_text_is_encoded_and_decoded_as_by_sentencepiece(tokenizer: Any, pieces: Any) -> None:
    texts = [*fuzz(600), "[UNUSED_TOKEN_3]", "a[UNUSED_TOKEN_15]b", "你好[UNUSED_TOKEN_7]"]
    found = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    # A text that is one user-defined piece has no space in front here (sentencepiece.build).
    different = [text for text, ids in zip(texts, found, strict=True) if ids != pieces.encode(text)]
    assert different in ([], ["[UNUSED_TOKEN_3]"])
    decoded = [tokenizer.backend_tokenizer.decode(ids, False) for ids in found]
    assert decoded == [pieces.decode(ids) for ids in found]


def test_special_tokens_have_their_published_ids(tokenizer: Any, converted: Path, pieces: Any) -> None:
    end = pieces.get_piece_size() + 6
    assert tokenizer.convert_tokens_to_ids(SPECIALS) == list(range(end - 6, end))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer("你好")["input_ids"] == [1, *pieces.encode("你好")]
    assert GenerationConfig.from_pretrained(converted).eos_token_id == [2, end - 2]


def test_chats_are_encoded_as_published(tokenizer: Any, pieces: Any) -> None:
    """``build_inputs`` of modeling_internlm2.py."""
    generator = random.Random(5)
    texts = [text for text in fuzz(800, seed=7) if not re.search("</?s>|<unk>", text)]
    end, start = (pieces.get_piece_size() + place for place in (4, 5))

    def turn(role: str, text: str) -> list[int]:
        return [start, *pieces.encode(f"{role}\n{text}"), end, *pieces.encode("\n")]

    for _ in range(40):
        messages, expected = [], [1]
        for role in (
            ["system"] * (generator.random() < 0.3) + ["user", "assistant"] * generator.randint(0, 2) + ["user"]
        ):
            messages.append({"role": role, "content": generator.choice(texts)})
            expected += turn(role, messages[-1]["content"])
        found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert found == [*expected, start, *pieces.encode("assistant\n")]


def test_tools_are_listed_called_and_answered_as_published(tokenizer: Any) -> None:
    """chat_format.md of the published repository."""
    tool = {"name": "weather", "description": "天气", "parameters": {"type": "object", "properties": {}}}
    call = {"function": {"name": "weather", "arguments": {"city": "北京"}}}
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A", "tool_calls": [call]},
        {"role": "tool", "content": "R"},
    ]
    offered = [{"type": "function", "function": tool}]
    found = tokenizer.apply_chat_template(messages, tools=offered, add_generation_prompt=True, tokenize=False)
    listed = json.dumps([tool], indent=4, ensure_ascii=False)
    assert found == (
        "<s><|im_start|>system\nS<|im_end|>\n"
        f"<|im_start|>system name=<|plugin|>\n{listed}<|im_end|>\n"
        "<|im_start|>user\nU<|im_end|>\n"
        '<|im_start|>assistant\nA<|action_start|><|plugin|>\n{"name": "weather", "parameters": {"city": "北京"}}'
        "<|action_end|><|im_end|>\n"
        "<|im_start|>environment name=<|plugin|>\nR<|im_end|>\n<|im_start|>assistant\n"
    )


def test_pieces_marked_unused_are_no_reason_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model(kind=5))
    made = internlm2.tokenizer(tmp_path, INTERNLM2)
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(tokenizer_model(kind=5))
    expected = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    for text in ("你好 [UNUSED_TOKEN_1]", "The quick [UNUSED_TOKEN_16]"):
        assert made(text, add_special_tokens=False)["input_ids"] == expected.encode(text)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architectures": ["InternLMForCausalLM"], "model_type": "internlm"}, "not the first InternLM"),
        ({"architectures": ["InternLM2ForRewardModel"]}, "no reward"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "none, linear or dynamic is required"),
        ({"rope_scaling": None, "rotary": {"base": 10000, "type": "dynamic"}}, "an early revision"),
        ({"tie_word_embeddings": True}, "its head has its own weights"),
        ({"num_key_value_heads": 3}, "do not divide"),
    ],
)
def test_variants_are_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(INTERNLM2 | change))
    with pytest.raises(ConfigError, match=reason):
        convert(folder, tmp_path / "native")


def test_other_tokens_than_the_published_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_model())
    added = {"added_tokens_decoder": {"3015": {"content": "<extra>"}, "9999": {"content": "<unreachable>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(added))
    with pytest.raises(ConfigError, match="has <extra> as token 3015"):
        internlm2.tokenizer(tmp_path, INTERNLM2 | {"vocab_size": 3020})
