"""Baichuan-13B and Baichuan2-13B (arXiv:2309.10305): Llama's decoder with ALiBi instead of rotary positions.

ALiBi (Press et al. 2022, arXiv:2108.12409) adds ``slope * (j - i)`` to the score of query i and key j; each head has its slope.
Only differences of positions matter, so padding on the left changes nothing. The bias is computed in one of two ways:

- In 16 bits, by features of the queries and keys: the softmax over j does not change with ``slope * i``, and ``slope * j`` is the
  product of a feature of the query and one of the key. Slopes and positions are split into a coarse and a fine part that bf16 and
  fp16 represent, and attention kernels sum in fp32, so this is more exact than adding a bias in 16 bits, and needs no
  (T, T) bias per head. Every kernel computes it, also with several documents in a row.
- In fp32, and by ``eager``, which rounds scores to 16 bits: as a bias, since ``slope * j`` alone has far larger values, with
  larger rounding errors, than the differences.

This file is copied into every folder with such a model, and loads there with ``trust_remote_code=True``. So it imports nothing but
torch and transformers.

Shapes: B sequences, T tokens, N keys (cached ones included), H heads, D features of a head.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    eager_attention_forward,
)

FEATURES = 8
"""Features that are added to a head: four have values, and kernels take heads of a multiple of 8."""

STEP = 256
"""Positions are split into multiples of this and a rest: bf16 represents both up to position 65535."""

BOUNDARIES = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""What transformers passes about the documents in a row."""


def slopes(heads: int) -> list[float]:
    """The slope of each head, by arXiv:2108.12409, section 3, and its code for numbers that are no power of two.

    n heads, a power of two, have 2^(-8/n), 2^(-16/n), …; others have those of the next smaller power of two, and
    every second one of the next larger power.
    """
    below = 1 << (heads.bit_length() - 1)
    found = [2.0 ** (-8 * (index + 1) / below) for index in range(below)]
    return found + [2.0 ** (-4 * (2 * index + 1) / below) for index in range(heads - below)]


class BaichuanAlibiConfig(LlamaConfig):
    """Llama's config; its rotary parameters are not used."""

    model_type = "baichuan_alibi"


class AlibiEmbedding(nn.Module):
    """Positions as features of queries and keys, where Llama has rotary positions."""

    def __init__(self, config: BaichuanAlibiConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim or config.hidden_size // config.num_attention_heads

    def apply_to(self, dtype: torch.dtype) -> bool:
        """Whether positions are features in this type; otherwise they are a bias."""
        return dtype in (torch.bfloat16, torch.float16) and self.config._attn_implementation != "eager"

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The features of queries (1, H, 1, F) and of keys (B or 1, 1, T, F) in the type of ``x``; None where they are a bias."""
        if not self.apply_to(x.dtype):
            return None
        # Scores are divided by sqrt(D), the bias is not.
        slope = torch.tensor(slopes(self.config.num_attention_heads), device=x.device) * math.sqrt(self.head_dim)
        coarse = slope.to(x.dtype)
        fine = (slope - coarse.float()).to(x.dtype)
        nothing = torch.zeros_like(coarse)
        query = torch.stack([coarse, coarse, fine, fine, *[nothing] * (FEATURES - 4)], dim=-1)
        rest = position_ids % STEP
        parts = [position_ids - rest, rest, position_ids - rest, rest]
        key = torch.stack([*parts, *[torch.zeros_like(rest)] * (FEATURES - 4)], dim=-1).to(x.dtype)
        return query[None, :, None], key[:, None]


def alibi_bias(
    allowed: torch.Tensor | None,  # (B or 1, 1, T, N)
    heads: int,
    cached: int,
    sizes: tuple[int, int, int],
    like: torch.Tensor,
    boundaries: torch.Tensor | None = None,
) -> torch.Tensor:
    """The bias (B or 1, H, T, N) that is added to the scores, the smallest number where a query must not see a key.

    Args:
        allowed: what may be seen, as booleans or as a bias; None for all earlier tokens of the same document.
        heads: H.
        cached: how many tokens came before the queries.
        sizes: T, N and the place of the first key.
        like: a tensor of the bias's type and device.
        boundaries: the first token of each document of a row, and the end of the last.
    """
    tokens, keys, first = sizes
    lowest = torch.finfo(like.dtype).min
    query_at = torch.arange(tokens, device=like.device)[:, None] + cached
    key_at = torch.arange(keys, device=like.device)[None] + first
    distance = key_at - query_at  # (T, N)
    slope = torch.tensor(slopes(heads), device=like.device)[:, None, None]
    bias = (slope * distance)[None].to(like.dtype)  # (1, H, T, N)
    if allowed is None:
        allowed = distance <= 0
        if boundaries is not None:
            ends = boundaries[1:].to(torch.long)
            documents = [torch.bucketize(at, ends, right=True) for at in (query_at, key_at)]
            allowed = allowed & (documents[0] == documents[1])
    if allowed.dtype is torch.bool:
        return torch.where(allowed, bias, lowest)
    return (allowed + bias).clamp(min=lowest)


class BaichuanAlibiAttention(LlamaAttention):
    """Llama's attention with ALiBi, either as features or in the mask."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,  # (B, T, H * D)
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The output (B, T, H * D), and the weights if the attention implementation has them."""
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            project(hidden_states).view(shape).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if position_embeddings is not None:
            of_query, of_key = (part.expand(*key.shape[:3], FEATURES) for part in position_embeddings)
            query, key = torch.cat([query, of_query], dim=-1), torch.cat([key, of_key], dim=-1)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if position_embeddings is not None:
            value = nn.functional.pad(value, (0, FEATURES))  # flash attention takes heads of one size only
        attention_interface: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        mixed, weights = attention_interface(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        mixed = mixed[..., : self.head_dim].reshape(*shape[:-2], -1)
        return self.o_proj(mixed), weights


class BaichuanAlibiDecoderLayer(LlamaDecoderLayer):
    """Llama's decoder layer with that attention."""

    def __init__(self, config: BaichuanAlibiConfig, layer_idx: int) -> None:
        super(LlamaDecoderLayer, self).__init__()  # not Llama's own modules as well
        self.hidden_size = config.hidden_size
        self.self_attn = BaichuanAlibiAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class BaichuanAlibiPreTrainedModel(LlamaPreTrainedModel):
    """What the model supports."""

    config_class = BaichuanAlibiConfig
    config: BaichuanAlibiConfig
    _no_split_modules = ["BaichuanAlibiDecoderLayer"]  # noqa: RUF012
    _supports_flash_attn = False
    _supports_flex_attn = False
    _can_record_outputs = {"hidden_states": BaichuanAlibiDecoderLayer, "attentions": BaichuanAlibiAttention}  # noqa: RUF012


class BaichuanAlibiModel(BaichuanAlibiPreTrainedModel, LlamaModel):
    """The decoder."""

    def __init__(self, config: BaichuanAlibiConfig) -> None:
        super(LlamaModel, self).__init__(config)  # not Llama's own modules as well
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(BaichuanAlibiDecoderLayer(config, at) for at in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = AlibiEmbedding(config)  # under this name Llama's forward calls it
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,  # (B, T)
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Llama's forward pass; where positions are no features, with the bias as its mask."""
        if inputs_embeds is None and input_ids is not None:
            inputs_embeds, input_ids = self.embed_tokens(input_ids), None
        if inputs_embeds is not None and not self.rotary_emb.apply_to(inputs_embeds.dtype):
            boundaries = kwargs.get(BOUNDARIES[0])
            kwargs = {name: value for name, value in kwargs.items() if name not in BOUNDARIES}
            allowed: Any = create_causal_mask(
                self.config, inputs_embeds, attention_mask, past_key_values, position_ids=position_ids
            )
            tokens = inputs_embeds.shape[1]
            cached = past_key_values.get_seq_length() if past_key_values is not None else 0
            keys, first = past_key_values.get_mask_sizes(tokens, 0) if past_key_values is not None else (tokens, 0)
            attention_mask = alibi_bias(
                allowed, self.config.num_attention_heads, int(cached), (tokens, keys, first), inputs_embeds, boundaries
            )
        made: BaseModelOutputWithPast = super().forward(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, **kwargs,
        )  # fmt: skip
        return made


class BaichuanAlibiForCausalLM(BaichuanAlibiPreTrainedModel, LlamaForCausalLM):
    """The decoder with a head."""

    def __init__(self, config: BaichuanAlibiConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)  # not Llama's own modules as well
        self.model = BaichuanAlibiModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]
