"""Attention for padding-free batches: each document by itself.

A row holds several documents; ``cu_seq_lens_q`` says where each begins (the convention of flash attention's variable-length
kernels, arXiv:2205.14135). One causal attention a document costs the sum of their squared lengths, where one masked attention
over the row costs the square of the sum.

Shapes: H heads, K key and value heads, N tokens of the row, D features a head.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "documents"


def documents_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, H, N, D)
    key: torch.Tensor,  # (1, K, N, D)
    value: torch.Tensor,  # (1, K, N, D)
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document; without boundaries, transformers' own sdpa."""
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **rest)
    lengths = cu_seq_lens_q.diff().tolist()
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
        )
        for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None  # (1, N, H, D)


def documents_mask(*args: Any, attention_mask: torch.Tensor | None = None, **rest: Any) -> torch.Tensor | None:
    """No mask where boundaries do its work (a batch without ``attention_mask``); sdpa's for a padded batch."""
    if attention_mask is None:
        return None
    mask: torch.Tensor | None = sdpa_mask(*args, attention_mask=attention_mask, **rest)
    return mask


def register() -> None:
    """Make ``attn_implementation="documents"`` known to transformers."""
    AttentionInterface.register(NAME, documents_attention)
    AttentionMaskInterface.register(NAME, documents_mask)
