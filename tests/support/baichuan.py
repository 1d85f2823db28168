"""Baichuan as it was published, in plain torch: the forward pass that modeling_baichuan.py describes.

Shapes: B sequences, T tokens, H hidden size, V vocabulary, A heads, D head size.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import normalize, silu

from published import BAICHUAN1, BAICHUAN2, baichuan_tensors

Weights = dict[str, torch.Tensor]

WITHOUT_TABLE = {key: value for key, value in BAICHUAN2.items() if key != "max_position_embeddings"}
SECOND_13B: dict[str, Any] = WITHOUT_TABLE | {"hidden_size": 96, "num_attention_heads": 6}
"""The config of a 13B checkpoint: ALiBi, with a number of heads that is no power of two (there 40)."""
FIRST_13B = {key: value for key, value in SECOND_13B.items() if key != "z_loss_weight"} | {"vocab_size": 64000}
"""Baichuan-13B's has the class name of Baichuan2; its vocabulary identifies it."""

MODELS: dict[str, dict[str, Any]] = {
    "1-7b": BAICHUAN1,
    "1-13b": FIRST_13B | {"architectures": ["BaiChuanForCausalLM"], "vocab_size": 3016},
    "2-7b": BAICHUAN2,
    "2-13b": SECOND_13B,
}
"""A config.json of each kind, with few tokens."""


def weights(name: str) -> Weights:
    """Random fp32 weights of a model of ``MODELS``, with their published names."""
    config = MODELS[name]
    return baichuan_tensors(dtype=torch.float32, inverse_frequencies=name == "1-7b", **config)


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + BAICHUAN2["rms_norm_eps"]) * weight


def rotate(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotary positions: dimension i of a head is rotated with dimension i + D / 2: (B, T, A, D)."""
    size = x.shape[-1]
    frequencies = 10000.0 ** (-torch.arange(0, size, 2) / size)
    angle = (positions[..., None] * frequencies)[:, :, None]  # (B, T, 1, D / 2)
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()], dim=-1)


def slopes(heads: int) -> list[float]:
    """ALiBi's slopes, by the recursion of the code of arXiv:2108.12409 (attention_with_linear_biases, ``get_slopes``)."""
    if math.log2(heads).is_integer():
        start = 2 ** (-(2 ** -(math.log2(heads) - 3)))
        return [start**power for power in range(1, heads + 1)]
    below = 2 ** math.floor(math.log2(heads))
    return slopes(below) + slopes(2 * below)[0::2][: heads - below]


def reference(w: Weights, config: Mapping[str, Any], ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V) of ids (B, T) in the type of the weights; mask (B, T) is 0 for padding.

    Baichuan2's head is normalised, recognised by its ``z_loss_weight``; 13B has ALiBi, and no table of rotary positions.
    """
    heads, tokens = config["num_attention_heads"], ids.shape[1]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    visible = torch.ones(tokens, tokens).tril().bool() & mask[:, None].bool()  # (B, T, T)
    x = w["model.embed_tokens.weight"][ids]
    bias = torch.zeros(heads, tokens, tokens)
    if "max_position_embeddings" not in config:
        distance = torch.arange(tokens) - torch.arange(tokens)[:, None]
        bias = torch.tensor(slopes(heads))[:, None, None] * distance
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        normed = rms_norm(x, w[f"{layer}.input_layernorm.weight"])
        mixed = (normed @ w[f"{layer}.self_attn.W_pack.weight"].T).unflatten(-1, (3, heads, -1))  # (B, T, 3, A, D)
        query, key, value = mixed.unbind(2)
        if "max_position_embeddings" in config:
            query, key = rotate(query, positions), rotate(key, positions)
        scores = torch.einsum("bqad,bkad->baqk", query, key) / math.sqrt(query.shape[-1]) + bias.to(x.dtype)
        chances = scores.masked_fill(~visible[:, None], -1e30).softmax(-1)
        mixed = torch.einsum("baqk,bkad->bqad", chances, value).flatten(-2)
        x = x + mixed @ w[f"{layer}.self_attn.o_proj.weight"].T
        normed = rms_norm(x, w[f"{layer}.post_attention_layernorm.weight"])
        gate, up = (normed @ w[f"{layer}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (silu(gate) * up) @ w[f"{layer}.mlp.down_proj.weight"].T
    head = w["lm_head.weight"]
    return rms_norm(x, w["model.norm.weight"]) @ (normalize(head) if is_second(config) else head).T


def is_second(config: Mapping[str, Any]) -> bool:
    """Whether a config of ``MODELS`` is Baichuan2's."""
    return config["architectures"] == ["BaichuanForCausalLM"]


def batch(padded: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Four rows of ids, and their mask: three of them are padded on the left."""
    ids = torch.randint(3, BAICHUAN2["vocab_size"], (4, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        for row, length in enumerate((0, 3, 17, 38)):
            mask[row, :length], ids[row, :length] = 0, BAICHUAN2["pad_token_id"]
    return ids, mask
