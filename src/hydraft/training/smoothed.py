"""The loss of ``train.label_smoothing``: transformers' ``LabelSmoother`` on the logits of a micro-batch."""

from typing import Any

import torch

from hydraft.training.objectives.base import Batch, Loss


def loss(smoother: Any, model: torch.nn.Module, batch: Batch, count: torch.Tensor | None) -> Loss:
    """(1 - s) of the cross-entropy of the trained tokens and s of that with a uniform target, over ``count`` tokens.

    As in the loss of transformers' models, logits are cast to fp32.
    """
    shifted = "shift_labels" in batch
    labels = batch["shift_labels" if shifted else "labels"]  # (L,) of the kept logits, or (B, T)
    outputs = model(**{name: value for name, value in batch.items() if name not in ("labels", "shift_labels")})
    logits = outputs["logits"].float()  # (1, L, V) or (B, T, V)
    logits = logits.flatten(0, -2) if shifted else logits
    return Loss(smoother({"logits": logits}, labels, shift_labels=not shifted, num_items_in_batch=count))
