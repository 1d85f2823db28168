"""Floating-point operations per trained token, and model FLOPs utilization (MFU) relative to the measured matmul rate.

Does not import torch. Per token, with N weights in matrix products, L layers, d features of all heads together and
documents of T tokens (Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B; Kaplan et al. 2020, arXiv:2001.08361,
section 2.1):

* a weight's product takes 2 in the forward pass, 2 for the gradient of its input and 2 for its own gradient: 6 for a
  trained weight, 4 for a frozen one. Recomputation repeats the forward pass: 2 more, so 6 for a frozen weight.
* attention's two products take 4·L·d·T in the forward pass over all pairs, half of that with a causal mask: 2·L·d·T.
  The backward pass takes twice as much, since both inputs have gradients: 6·L·d·T in total, 8·L·d·T with recomputation.

PaLM does not count recomputation in MFU. It is counted here, since the figure shows how busy the GPU is (HFU in PaLM).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Work:
    """The work per token of a run."""

    frozen: int
    """Frozen weights in matrix products."""
    trained: int
    """Trained weights in matrix products."""
    layers: int
    width: int
    """Features of all query heads of a layer together."""
    length: int
    """Tokens of a document."""
    recomputes: bool = False

    @property
    def per_token(self) -> int:
        """Floating-point operations per token."""
        recomputation = 1 if self.recomputes else 0
        weights = (4 + 2 * recomputation) * self.frozen + (6 + 2 * recomputation) * self.trained
        return weights + (6 + 2 * recomputation) * self.layers * self.width * self.length

    def utilisation(self, tokens_per_second: float, peak: float) -> float:
        """The share of ``peak`` FLOP/s at this number of tokens per second."""
        return tokens_per_second * self.per_token / peak


def work(config: dict[str, Any], parameters: int, trained: int, length: int, recomputes: bool) -> Work:
    """Work of a model with this config.json and LoRA: ``parameters`` are frozen, ``trained`` are those of the adapter.

    An embedding that is not tied to the head is looked up, not multiplied, and does not count.
    """
    heads = config["num_attention_heads"]
    looked_up = 0 if config.get("tie_word_embeddings") else config["vocab_size"] * config["hidden_size"]
    width = heads * (config.get("head_dim") or config["hidden_size"] // heads)
    return Work(parameters - looked_up, trained, config["num_hidden_layers"], width, length, recomputes)


def of_folder(model: Path, parameters: int, trained: int, length: int, recomputes: bool) -> Work | None:
    """The same for a model's folder; None if its config.json is missing or lacks the keys."""
    try:
        return work(json.loads((model / "config.json").read_text()), parameters, trained, length, recomputes)
    except (OSError, KeyError):
        return None
