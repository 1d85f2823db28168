"""Floating-point operations of a trained token, and the share of the card's own matmul rate that they make (MFU). No torch.

Per token, with N weights in matrix products, L layers, d features of all heads together and documents of T tokens (Chowdhery et al.
2022, PaLM, arXiv:2204.02311, appendix B; Kaplan et al. 2020, arXiv:2001.08361, section 2.1):

* a weight's product takes 2 in the forward pass, 2 for the gradient of its input and 2 for its own: 6 for a trained weight, 4 for
  a frozen one, whose own gradient no one asks for. Recomputation does the forward pass again: 2 more, so 6 for a frozen weight.
* attention's two products take 4·L·d·T in the forward pass over all pairs, half of that where each token sees only those before it:
  2·L·d·T, and twice as much backward, since both of their inputs have gradients: 6·L·d·T, with recomputation 8·L·d·T.

PaLM counts no recomputation into MFU; here it is counted, since what is wanted is how busy the card is (what PaLM calls HFU).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Work:
    """What a token of a run takes."""

    frozen: int
    """Weights in matrix products that are not trained."""
    trained: int
    """Weights that are."""
    layers: int
    width: int
    """Features of all query heads of a layer together."""
    length: int
    """Tokens of a document."""
    recomputes: bool = False

    @property
    def per_token(self) -> int:
        """Floating-point operations."""
        again = 1 if self.recomputes else 0
        weights = (4 + 2 * again) * self.frozen + (6 + 2 * again) * self.trained
        return weights + (6 + 2 * again) * self.layers * self.width * self.length

    def utilisation(self, tokens_per_second: float, peak: float) -> float:
        """The share of ``peak`` FLOP/s that so many tokens a second make."""
        return tokens_per_second * self.per_token / peak


def work(config: dict[str, Any], parameters: int, trained: int, length: int, recomputes: bool) -> Work:
    """Of a model with this config.json and LoRA: ``parameters`` of it, frozen, and ``trained`` ones of the adapter.

    An embedding that is not the head as well is looked up, not multiplied, and does not count.
    """
    heads = config["num_attention_heads"]
    looked_up = 0 if config.get("tie_word_embeddings") else config["vocab_size"] * config["hidden_size"]
    width = heads * (config.get("head_dim") or config["hidden_size"] // heads)
    return Work(parameters - looked_up, trained, config["num_hidden_layers"], width, length, recomputes)


def of_folder(model: Path, parameters: int, trained: int, length: int, recomputes: bool) -> Work | None:
    """The same for a model's folder; None where its config.json is not there or has other words."""
    try:
        return work(json.loads((model / "config.json").read_text()), parameters, trained, length, recomputes)
    except (OSError, KeyError):
        return None
