"""Log-likelihoods of several answers to the same prompts, each prompt computed once: its keys and values are kept for all answers.

The prompts are padded on the left and the answers on the right, so that every answer follows its prompt.

Shapes: B prompts, T tokens of the longest, K answers to each; S tokens of the longest answer, without its last; V vocabulary.
"""

import inspect
import sys
from typing import Any

import peft
import torch
from transformers import DynamicCache

from hydraft.models.families.registry import native_family


def is_supported(model: Any) -> bool:
    """Whether the keys and values of a prompt are all that its answers need, and the model's own forward pass uses them.

    A gated delta net has a state from which tokens cannot be removed, and Unsloth's forward pass takes a single token after a prompt.
    """
    inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    family = native_family(inner.config.model_type)
    return family is not None and family.plain_head and not family.hybrid and "unsloth" not in sys.modules


@torch.no_grad()
def log_likelihoods(
    model: Any, prompts: list[list[int]], answers: list[list[list[int]]], pad_id: int, device: torch.device
) -> torch.Tensor:  # (B, K)
    """The sum of log p over the tokens of each answer, in nats and fp64, from 1 + K forward passes.

    Args:
        model: in eval mode; ``is_supported``.
        prompts: their token ids.
        answers: of each prompt the token ids of its K answers, at least one each.
        pad_id: fills rows up; it is masked.
    """
    inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    takes = inspect.signature(inner.forward).parameters
    length = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (length - len(row)) + row for row in prompts], device=device)  # (B, T)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in prompts], device=device)  # (B, T)
    lengths = mask.sum(-1, keepdim=True)  # (B, 1)
    cache = DynamicCache()

    def logits(ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, **more: int) -> torch.Tensor:
        known = {"position_ids": positions} if "position_ids" in takes else {}
        out = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **known, **more)
        return out.logits.float()  # type: ignore[no-any-return]

    first = logits(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), logits_to_keep=1)[:, -1].log_softmax(-1)  # (B, V)
    sums = []
    for column in zip(*answers, strict=True):
        begins = torch.tensor([answer[0] for answer in column], device=device)
        width = max(1, max(map(len, column)) - 1)  # all ranks make as many passes, so also for answers of one token
        rows = [answer + [pad_id] * (width + 1 - len(answer)) for answer in column]
        tokens = torch.tensor(rows, device=device)  # (B, S + 1)
        there = torch.arange(width, device=device) < torch.tensor(
            [[len(a) - 1] for a in column], device=device
        )  # (B, S)
        positions = lengths + torch.arange(width, device=device)  # (B, S)
        log_p = logits(tokens[:, :-1], torch.cat([mask, there.to(mask)], 1), positions).log_softmax(-1)  # (B, S, V)
        rest = log_p.gather(-1, tokens[:, 1:, None]).squeeze(-1).double().masked_fill(~there, 0.0)  # (B, S)
        sums.append(first.gather(-1, begins[:, None]).squeeze(-1).double() + rest.sum(-1))
        cache.crop(-width)
    return torch.stack(sums, 1)
