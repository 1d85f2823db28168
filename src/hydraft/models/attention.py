"""Attention for padding-free batches: each document by itself.

A row holds several documents; ``cu_seq_lens_q`` says where each begins (the convention of flash attention's variable-length
kernels, arXiv:2205.14135). One causal attention a document costs the sum of their squared lengths, where one masked attention
over the row costs the square of the sum. Where flash attention is there for it, one kernel does all documents of the row;
elsewhere each is an sdpa of its own.

Shapes: H heads, K key and value heads, N tokens of the row, D features a head.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "documents"

HALVES = (torch.bfloat16, torch.float16)
"""What flash attention computes in."""


def grouping(kernel: Callable[..., Any]) -> dict[str, Any]:
    """What ``varlen_attn`` needs where there are fewer key heads than query heads; torch 2.11's takes them without a word."""
    return {"enable_gqa": True} if "enable_gqa" in inspect.signature(kernel).parameters else {}


GROUPED = grouping(varlen_attn)

_lengths = WeakTensorKeyDictionary()
"""Tokens of each document, by the boundaries of a batch that is still there: all its layers ask the device but once."""


def documents_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, H, N, D)
    key: torch.Tensor,  # (1, K, N, D)
    value: torch.Tensor,  # (1, K, N, D)
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document; without boundaries, transformers' own sdpa."""
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **rest)
    if max_length_q is None or dropout or not flash_takes(query, key, value):
        return _one_by_one(query, key, value, cu_seq_lens_q, dropout, scaling), None
    out = varlen_attn(
        query[0].transpose(0, 1),  # (N, H, D)
        key[0].transpose(0, 1),  # (N, K, D)
        value[0].transpose(0, 1),  # (N, K, D)
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1, 0),  # all that came before, and nothing that comes
        **(GROUPED if query.shape[1] != key.shape[1] else {}),
    )
    assert isinstance(out, torch.Tensor)
    return out[None], None  # (1, N, H, D)


def flash_takes(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether flash attention's kernel for documents takes tensors like these (``mha_varlen_fwd`` of its flash_api.cpp)."""
    size = query.shape[-1]
    same = query.dtype == key.dtype == value.dtype and value.shape[-1] == size
    return query.is_cuda and query.dtype in HALVES and same and size % 8 == 0 and size <= _largest_head()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _largest_head() -> int:
    """Features of a head that flash attention takes on this card; 0 for a card or a build that has none."""
    if torch.version.hip is not None or not torch.backends.cuda.is_flash_attention_available():
        return 0
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return 0
    # Too little shared memory for the backward pass of larger ones (ATen/native/transformers/cuda/sdp_utils.cpp).
    return 192 if (major == 8 and minor != 0) or major >= 12 else 256


@torch.compiler.disable  # type: ignore[untyped-decorator]  # how many documents there are is a number of the batch's own
def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """An sdpa for each document: (1, N, H, D)."""
    if boundaries not in _lengths:
        _lengths[boundaries] = boundaries.diff().tolist()
    lengths = _lengths[boundaries]
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=scaling, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
        )
        for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2)


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
