"""Attention over the paged cache of a batch, one call per request.

transformers' ``paged|sdpa`` computes the scores of every token against the keys of all requests and masks those of other
requests: work and a mask that grow with the square of the number of requests. Here a request's tokens attend to its own keys
only, as they would outside a batch. For CPUs, where the overhead of a call is small, and for what ``paged|sdpa`` does not have:
capped scores and sinks.

Shapes: T tokens of the batch, N cached tokens of all requests; H heads, K key and value heads, D features of a head.
"""

from dataclasses import replace
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested
from transformers.utils.import_utils import is_flash_attn_2_available

from hydraft.models.attention_features import Features, attend, causal

NAME = "paged|requests"


def requests_attention(
    module: Any,
    query: torch.Tensor,  # (1, H, T, D)
    key: torch.Tensor,  # (1, K, T, D)
    value: torch.Tensor,  # (1, K, T, D)
    attention_mask: torch.Tensor | None,
    **batch: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each request's new tokens to its tokens in the window; ``batch`` is what transformers passes."""
    window = batch["cache"].sliding_windows[module.layer_idx]
    features = replace(Features.of(batch), window=None if window == 1 else window)  # 1 stands for none
    keys, values = batch["cache"].update(  # (N, K, D)
        key_states=key,
        value_states=value,
        layer_idx=module.layer_idx,
        read_index=batch["read_index"],
        write_index=batch["write_index"],
    )
    new = batch["cu_seq_lens_q"].diff().tolist()
    ends = batch["cu_seq_lens_k"]
    if isinstance(ends, dict):  # of a model in which layers differ
        ends = ends["full_attention" if features.window is None else "sliding_attention"]
    cached = ends.diff().tolist()
    parts = [
        attend(q, k[None], v[None], _mask(q, k, features.window), features)
        for q, k, v in zip(
            query.split(new, 2),
            keys.transpose(0, 1).split(cached, 1),
            values.transpose(0, 1).split(cached, 1),
            strict=True,
        )
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None  # (1, T, H, D)


def _mask(query: torch.Tensor, key: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """The causal mask of a request's last tokens; None for a single one in the window, which attends to all."""
    new, total = query.shape[2], key.shape[1]
    if window is not None and window < total:
        return causal(new, total, query.device, window)
    return None if new == 1 else causal(new, total, query.device)


def choose(model: PreTrainedModel) -> str:
    """The attention implementation for a model: flash attention if supported; this module's on a CPU, and for softcap and sinks."""
    text = model.config.get_text_config()
    own = getattr(text, "attn_logit_softcapping", None) is not None or any(
        getattr(module, "sinks", None) is not None for module in model.modules()
    )
    if model.device.type == "cuda" and not own:
        return "paged|flash_attention_2" if is_flash_attn_2_available() and flash_supports(model) else "paged|sdpa"
    AttentionInterface.register(NAME, requests_attention)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    return NAME


def flash_supports(model: PreTrainedModel) -> bool:
    """Whether flash-attn supports this model on its GPU: 16 bits, Ampere or newer, heads of up to 256 features."""
    text = model.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    halves = model.dtype in (torch.bfloat16, torch.float16)
    return bool(
        model._supports_flash_attn
        and halves
        and head <= 256
        and torch.cuda.get_device_capability(model.device) >= (8, 0)
    )


def block_size(implementation: str) -> int:
    """Tokens of a cache block: a multiple of 256 with flash attention, whose paged decoding requires it."""
    return 256 if is_flash_attention_requested(requested_attention_implementation=implementation) else 32
