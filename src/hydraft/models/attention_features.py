"""Attention with what the layers of a model may have: a sliding window, capped scores, sinks.

Shapes: B rows, H heads, K key and value heads, Q query tokens, T key tokens, D features of a head.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch

PAD = 8
"""Features that are added to a head for the sinks: kernels want a multiple of 8."""


@dataclass(frozen=True)
class Features:
    """What one attention layer has, from the options that transformers passes."""

    scaling: float | None
    """Of the scores; None for the inverse square root of D."""
    dropout: float = 0.0
    window: int | None = None
    """Tokens that a token attends to, itself included; None for all before it."""
    softcap: float | None = None
    """The scores are ``softcap * tanh(scores / softcap)`` (Gemma 2, arXiv:2408.00118)."""
    sinks: torch.Tensor | None = None
    """(H,): a logit of each head that takes part in the softmax and has no value (gpt-oss, arXiv:2508.10925)."""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """The features in the options of an attention call."""
        return cls(
            options.get("scaling"),
            options.get("dropout", 0.0),
            options.get("sliding_window"),
            options.get("softcap"),
            options.get("s_aux"),
        )

    @property
    def plain(self) -> bool:
        """Whether ``varlen_attn`` has all of them: it has windows, but neither dropout nor softcap nor sinks."""
        return not self.dropout and self.softcap is None and self.sinks is None


def attend(
    query: torch.Tensor,  # (B, H, Q, D)
    key: torch.Tensor,  # (B, K, T, D)
    value: torch.Tensor,  # (B, K, T, D)
    mask: torch.Tensor | None,  # (B or 1, 1, Q, T), True or 0 where a query attends to a key
    features: Features,
) -> torch.Tensor:
    """Attention of one row, (B, H, Q, D); causal without a ``mask``."""
    if mask is not None and not mask.is_floating_point() and mask.dtype is not torch.bool:
        mask = mask.bool()
    if features.softcap is not None:
        return _capped(query, key, value, mask, features)
    if features.sinks is not None:
        return _with_sinks(query, key, value, mask, features)
    return _sdpa(query, key, value, mask, features)


def band(query: torch.Tensor, key: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """The causal mask of a sliding window, (1, 1, Q, T); None if the window has all keys. The last query is at the last key."""
    total = key.shape[2]
    return None if window is None or window >= total else causal(query.shape[2], total, query.device, window)


def causal(queries: int, keys: int, device: torch.device, window: int | None = None) -> torch.Tensor:
    """The causal mask, (1, 1, Q, T), of the last Q of T tokens, each of which attends to the last ``window``, itself included."""
    seen = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return seen if window is None else seen.triu(keys - queries - window + 1)


def _sdpa(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, features: Features
) -> torch.Tensor:
    groups = query.shape[1] // key.shape[1]
    if mask is not None and groups > 1:  # with a mask, only the kernel that holds all scores takes fewer key heads
        key, value, groups = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1), 1
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=features.dropout,
        scale=features.scaling,
        is_causal=mask is None and query.shape[2] > 1,
        enable_gqa=groups > 1,
    )


def _with_sinks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, features: Features
) -> torch.Tensor:
    """sdpa with a first key for the sinks, whose score is the sink for every query, and whose value is zero.

    Heads get ``PAD`` more features: two are 1 in queries, 0 in keys, and in the sink's key the sink over the scaling and what half
    precision rounds off it. So no scores are held, and the sinks get their gradient.
    """
    assert features.sinks is not None
    rows, heads, queries, size = query.shape
    scaling = size**-0.5 if features.scaling is None else features.scaling
    key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
    exact = features.sinks.to(torch.promote_types(key.dtype, torch.float32)) / scaling
    high = exact.to(key.dtype)
    sink = torch.stack([high, (exact - high).to(key.dtype)], -1).view(1, heads, 1, 2)
    first = torch.nn.functional.pad(sink, (size, PAD - 2))
    key = torch.cat([first.expand(rows, -1, -1, -1), torch.nn.functional.pad(key, (0, PAD))], 2)  # (B, H, 1 + T, D + 8)
    ones = torch.ones_like(query[..., :2])
    query = torch.nn.functional.pad(torch.cat([query, ones], -1), (0, PAD - 2))
    if mask is None:
        mask = causal(queries, value.shape[2], query.device)
    mask = torch.nn.functional.pad(mask, (1, 0), value=0.0 if mask.is_floating_point() else True)
    value = torch.nn.functional.pad(value, (0, 0, 1, 0))
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=features.dropout, scale=scaling
    )


def _capped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, features: Features
) -> torch.Tensor:
    """With the scores in memory, (B, H, Q, T); the softmax is in fp32."""
    groups, cap = query.shape[1] // key.shape[1], features.softcap
    assert cap is not None
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    scaling = query.shape[-1] ** -0.5 if features.scaling is None else features.scaling
    scores = torch.tanh(query @ key.mT * (scaling / cap)) * cap
    if mask is None:
        mask = causal(query.shape[2], key.shape[2], query.device)
    scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if features.sinks is not None:
        sinks = features.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([sinks, scores], -1)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    weights = torch.nn.functional.dropout(weights, features.dropout)
    return weights[..., -key.shape[2] :] @ value
