"""How many tokens a pass should have on this machine: measured once for a base, and kept in the cache.

A pass of few tokens takes hardly less time than one of some more: launching kernels, reading the weights and dequantising them cost the
same. From some number on, twice the tokens take twice the time, and another member in a pass saves nothing.
"""

import time
from typing import Any

import torch
from transformers import PreTrainedModel

from hydraft.training.pack import measured

SHARE = 0.9
"""Of the highest tokens per second that is good enough."""

DOCUMENT = 64
"""Tokens of each document of the measurement."""

MOST, LONGEST, GAIN = 16_384, 0.5, 1.05
"""The largest pass that is measured, in tokens. No larger one is, if one took so many seconds, or was hardly faster, for each token, than one
of half the size."""

TIMES = 3
"""Passes of each size; the fastest counts."""


def tokens(model: PreTrainedModel, kind: str) -> int:
    """The smallest number of tokens with which a pass over ``model`` is about as fast, for each token, as larger ones.

    Args:
        model: without adapters, in training mode.
        kind: what the time of a pass depends on beyond the model's shape, such as the quantisation.
    """
    shape = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    subject = {"device": measured.device_name(model.device), "kind": kind, "dtype": str(model.dtype), "model": shape}
    return measured.once(subject, _read, lambda: choose(_measure(model)))


def choose(rates: dict[int, float]) -> int:
    """From tokens per second, by the tokens of a pass."""
    best = max(rates.values())
    return min(size for size, rate in rates.items() if rate >= SHARE * best)


def _measure(model: PreTrainedModel) -> dict[int, float]:
    """Tokens per second of forward and backward passes, by their tokens."""
    rates: dict[int, float] = {}
    size = DOCUMENT
    while size <= MOST:
        row = _row(model, size)
        seconds = min(_seconds(model, row) for _ in range(TIMES))
        rates[size] = size / seconds
        if seconds > LONGEST or rates[size] < GAIN * rates.get(size // 2, 0.0):
            break
        size *= 2
    return rates


def _row(model: PreTrainedModel, size: int) -> dict[str, Any]:
    """A row (1, N) of documents of equal length, as embeddings, so that there is a gradient without an adapter."""
    count, device = size // DOCUMENT, model.device
    ends = torch.arange(0, size + 1, DOCUMENT, dtype=torch.int32, device=device)
    ids = torch.zeros(1, size, dtype=torch.long, device=device)
    return {
        "inputs_embeds": model.get_input_embeddings()(ids).detach().requires_grad_(),  # (1, N, H)
        "position_ids": torch.arange(DOCUMENT, device=device).repeat(count)[None],
        "logits_to_keep": ends[1:].long() - 1,
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": DOCUMENT,
        "max_length_k": DOCUMENT,
    }


def _seconds(model: Any, row: dict[str, Any]) -> float:
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    torch.autograd.grad(model(**row).logits.float().sum(), row["inputs_embeds"])
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _read(found: Any) -> int | None:
    return found if isinstance(found, int) and found > 0 else None
