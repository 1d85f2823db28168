"""Attention over the cache of a batch: each request by itself.

transformers' ``paged|sdpa`` lets every token of the batch look at the keys of all requests and masks what is not its own: work
and a mask that grow with the square of the number of requests. Here each request's tokens see its own keys alone, as they
would outside a batch. For CPUs, where a call costs little.

Shapes: T tokens of the batch, N tokens that are looked at, of all requests; H heads, K key and value heads, D features a head.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested
from transformers.utils.import_utils import is_flash_attn_2_available

NAME = "paged|requests"


def requests_attention(
    module: Any,
    query: torch.Tensor,  # (1, H, T, D)
    key: torch.Tensor,  # (1, K, T, D)
    value: torch.Tensor,  # (1, K, T, D)
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **batch: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each request's new tokens to all of its tokens."""
    keys, values = batch["cache"].update(  # (N, K, D)
        key_states=key,
        value_states=value,
        layer_idx=module.layer_idx,
        read_index=batch["read_index"],
        write_index=batch["write_index"],
    )
    asked = batch["cu_seq_lens_q"].diff().tolist()
    seen = batch["cu_seq_lens_k"].diff().tolist()
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            q,
            k[None],
            v[None],
            attn_mask=_mask(q.shape[2], k.shape[1]),
            scale=scaling,
            enable_gqa=q.shape[1] != k.shape[0],
        )
        for q, k, v in zip(
            query.split(asked, 2),
            keys.transpose(0, 1).split(seen, 1),
            values.transpose(0, 1).split(seen, 1),
            strict=True,
        )
    ]
    return torch.cat(parts, dim=2).transpose(1, 2), None  # (1, T, H, D)


def _mask(new: int, all_of_them: int) -> torch.Tensor | None:
    """What the last ``new`` of a request's tokens may see; None where that is everything."""
    if new == 1:
        return None
    return torch.ones(new, all_of_them, dtype=torch.bool).tril(all_of_them - new)


def choose(model: PreTrainedModel) -> str:
    """The implementation for a model: flash attention where it works, ours on a CPU, unless attention slides over a window."""
    text = model.config.get_text_config()
    if model.device.type == "cuda":
        return "paged|flash_attention_2" if is_flash_attn_2_available() and flash_takes(model) else "paged|sdpa"
    if getattr(text, "sliding_window", None) is not None:
        return "paged|sdpa"
    AttentionInterface.register(NAME, requests_attention)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)
    return NAME


def flash_takes(model: PreTrainedModel) -> bool:
    """Whether flash-attn's kernels take this model on its card: 16 bits, Ampere or newer, heads of up to 256 features."""
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
    """Tokens of a block of the cache: with flash attention a multiple of 256, which its decoding from blocks needs."""
    return 256 if is_flash_attention_requested(requested_attention_implementation=implementation) else 32
