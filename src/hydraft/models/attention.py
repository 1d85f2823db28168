"""Attention for padding-free batches, in which each document attends to itself only.

A row holds several documents; ``cu_seq_lens_q`` has the boundaries between them, as in flash attention's variable-length
kernels (arXiv:2205.14135). Causal attention per document costs the sum of their squared lengths; one masked attention over the
row would cost the square of the sum. If flash attention supports the tensors, one kernel call computes all documents of the
row; otherwise each document is one call of sdpa.

Shapes: H heads, K key and value heads, N tokens of the row, D features of a head.
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
"""The data types that flash attention supports."""


def grouping(kernel: Callable[..., Any]) -> dict[str, Any]:
    """The arguments with which ``varlen_attn`` accepts fewer key heads than query heads; torch 2.11's needs none."""
    return {"enable_gqa": True} if "enable_gqa" in inspect.signature(kernel).parameters else {}


GROUPED = grouping(varlen_attn)

_lengths = WeakTensorKeyDictionary()
"""The document lengths of a batch by its boundaries tensor, copied from the device once for all layers."""


def documents_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (1, H, N, D)
    key: torch.Tensor,  # (1, K, N, D)
    value: torch.Tensor,  # (1, K, N, D)
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document; transformers' sdpa for a batch without ``cu_seq_lens_q``.

    ``options`` are those that transformers passes: ``dropout`` and ``scaling``, ``cu_seq_lens_q`` and ``max_length_q``.
    """
    boundaries, longest = options.pop("cu_seq_lens_q", None), options.pop("max_length_q", None)
    if boundaries is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    dropout, scaling = options.get("dropout", 0.0), options.get("scaling")
    if longest is None or dropout or not flash_supports(query, key, value):
        return _one_by_one(query, key, value, boundaries, dropout, scaling), None
    out = varlen_attn(
        query[0].transpose(0, 1),  # (N, H, D)
        key[0].transpose(0, 1),  # (N, K, D)
        value[0].transpose(0, 1),  # (N, K, D)
        boundaries,
        boundaries,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),  # all earlier tokens, no later ones
        **(GROUPED if query.shape[1] != key.shape[1] else {}),
    )
    assert isinstance(out, torch.Tensor)
    return out[None], None  # (1, N, H, D)


def flash_supports(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether flash attention's variable-length kernel supports these tensors (``mha_varlen_fwd`` of its flash_api.cpp)."""
    size = query.shape[-1]
    same = query.dtype == key.dtype == value.dtype and value.shape[-1] == size
    return query.is_cuda and query.dtype in HALVES and same and size % 8 == 0 and size <= _largest_head()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _largest_head() -> int:
    """The largest head size that flash attention supports on this GPU; 0 if the GPU or the build does not have it."""
    if torch.version.hip is not None or not torch.backends.cuda.is_flash_attention_available():
        return 0
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return 0
    # Too little shared memory for the backward pass of larger ones (ATen/native/transformers/cuda/sdp_utils.cpp).
    return 192 if (major == 8 and minor != 0) or major >= 12 else 256


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the number of documents differs from batch to batch
def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    boundaries: torch.Tensor,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """One sdpa call per document: (1, N, H, D)."""
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
    """No mask for a batch without ``attention_mask``, which has boundaries; sdpa's mask for a padded batch."""
    if attention_mask is None:
        return None
    mask: torch.Tensor | None = sdpa_mask(*args, attention_mask=attention_mask, **rest)
    return mask


def register() -> None:
    """Register ``attn_implementation="documents"`` with transformers."""
    AttentionInterface.register(NAME, documents_attention)
    AttentionMaskInterface.register(NAME, documents_mask)
