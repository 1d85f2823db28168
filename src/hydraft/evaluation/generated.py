"""Generates greedy answers to a batch of prompts.

Shapes: B prompts, T tokens of the longest one.
"""

from collections.abc import Sequence
from typing import Any

import peft
import torch
import torch.distributed as dist
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hydraft.data.thinking import Answer
from hydraft.models import generation


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    device: torch.device,
) -> list[Answer]:
    """The answer to each prompt. Under ZeRO-3, every rank must call it."""
    length = max(map(len, prompts))
    pad = int(tokenizer.pad_token_id)
    ids = torch.tensor([[pad] * (length - len(row)) + row for row in prompts], device=device)  # (B, T)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompts], device=device)  # (B, T)
    inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=generation.end_ids(tokenizer, inner),
        use_cache=True,
    )
    several = dist.get_world_size() > 1
    with generation.greedy(inner):
        out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, synced_gpus=several)
    made = out[:, length:].tolist()
    return [generation.read_answer(tokenizer, *pair) for pair in zip(prompts, made, strict=True)]
