"""Attention for padding-free batches, in which each document attends to itself only.

A row holds several documents; ``cu_seq_lens_q`` has the boundaries between them, as in flash attention's variable-length
kernels (arXiv:2205.14135). Causal attention per document costs the sum of their squared lengths; one masked attention over the
row would cost the square of the sum. If flash attention supports the tensors and the features of the layer, one kernel call
computes all documents of the row; otherwise each document is attended to by itself (``attention_features``).

Shapes: B rows, H heads, K key and value heads, N tokens of the row, D features of a head.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hydraft.errors import ConfigError
from hydraft.models.attention_features import Features, attend, band

NAME = "documents"

HALVES = (torch.bfloat16, torch.float16)
"""The data types that flash attention supports."""

_packed = False
"""Whether the batch of the last forward pass has boundaries (``use``)."""


def grouping(kernel: Callable[..., Any]) -> dict[str, Any]:
    """The arguments with which ``varlen_attn`` accepts fewer key heads than query heads; torch 2.11's needs none."""
    return {"enable_gqa": True} if "enable_gqa" in inspect.signature(kernel).parameters else {}


GROUPED = grouping(varlen_attn)

_lengths = WeakTensorKeyDictionary()
"""The document lengths of a batch by its boundaries tensor, copied from the device once for all layers."""


def documents_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # (B, H, N, D)
    key: torch.Tensor,  # (B, K, N, D)
    value: torch.Tensor,  # (B, K, N, D)
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document; over whole rows for a batch without ``cu_seq_lens_q``.

    ``options`` are those that transformers passes: ``dropout``, ``scaling``, ``sliding_window``, ``softcap``, ``s_aux`` (the sinks),
    ``cu_seq_lens_q`` and ``max_length_q``. ``row_documents`` admits no model whose attention has others.

    Raises:
        ConfigError: the documents of a row cannot be kept apart in this attention; the message names the way out.
    """
    boundaries, longest = options.pop("cu_seq_lens_q", None), options.pop("max_length_q", None)
    features = Features.of(options)
    marked = attention_mask is not None and attention_mask.shape[-2] == 0
    if attention_mask is not None and marked:
        features, attention_mask = replace(features, window=attention_mask.shape[-1]), None
    if boundaries is None:
        if attention_mask is None and _packed:
            raise _refusal(module, "is not told where they begin")
        if marked:
            attention_mask = band(query, key, features.window)
        return _whole_rows(module, query, key, value, attention_mask, options), None
    if not options.get("is_causal", getattr(module, "is_causal", True)):
        raise _refusal(module, "is not causal")
    if longest is None or not features.plain or not flash_supports(query, key, value):
        return _one_by_one(query, key, value, boundaries, features), None
    window = features.window
    out = varlen_attn(
        query[0].transpose(0, 1),  # (N, H, D)
        key[0].transpose(0, 1),  # (N, K, D)
        value[0].transpose(0, 1),  # (N, K, D)
        boundaries,
        boundaries,
        longest,
        longest,
        scale=features.scaling,
        # Tokens before and after a token that it attends to besides itself; -1 are all.
        window_size=(-1 if window is None or window >= longest else window - 1, 0),
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
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, boundaries: torch.Tensor, features: Features
) -> torch.Tensor:
    """Each document by itself: (1, N, H, D)."""
    if boundaries not in _lengths:
        _lengths[boundaries] = boundaries.diff().tolist()
    lengths = _lengths[boundaries]
    parts = [
        attend(q, k, v, band(q, k, features.window), features)
        for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


def _whole_rows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    options: Mapping[str, Any],
) -> torch.Tensor:
    """Attention of a batch without boundaries, (B, N, H, D): transformers' sdpa, which has neither softcap nor sinks."""
    features = Features.of(options)
    if features.softcap is None and features.sinks is None:
        out, _ = sdpa_attention_forward(module, query, key, value, mask, **options)
        return out
    return attend(query, key, value, mask, features).transpose(1, 2).contiguous()


def _refusal(module: torch.nn.Module, reason: str) -> ConfigError:
    return ConfigError(
        f"data.batching=padding_free: documents cannot be kept apart in a row: {type(module).__name__} {reason}: "
        "use data.batching=padded data.packing=false"
    )


def documents_mask(
    *args: Any, attention_mask: torch.Tensor | None = None, local_size: int | None = None, **rest: Any
) -> torch.Tensor | None:
    """sdpa's mask for a padded batch; for one without ``attention_mask``, which has boundaries, only its window.

    A window is a mask of no queries and so many keys, (1, 1, 0, window): some models have it nowhere but in the mask.
    """
    if attention_mask is None:
        return (
            None
            if local_size is None
            else torch.empty(1, 1, 0, local_size, dtype=torch.bool, device=rest.get("device"))
        )
    mask: torch.Tensor | None = sdpa_mask(*args, attention_mask=attention_mask, local_size=local_size, **rest)
    return mask


def use(model: PreTrainedModel) -> None:
    """Give ``model`` this attention, and note in each forward pass whether its batch has boundaries, for layers that do not get them."""
    register()
    model.set_attn_implementation(NAME)

    def note(_: torch.nn.Module, __: Any, given: Mapping[str, Any]) -> None:
        global _packed
        _packed = given.get("cu_seq_lens_q") is not None

    model.register_forward_pre_hook(note, with_kwargs=True)


def register() -> None:
    """Register ``attn_implementation="documents"`` with transformers."""
    AttentionInterface.register(NAME, documents_attention)
    AttentionMaskInterface.register(NAME, documents_mask)
