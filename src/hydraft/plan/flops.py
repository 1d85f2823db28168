"""Floating-point operations of training, from the model's layout. No torch.

A product of (N, in) and (in, out) has 2 N in out of them. As in Megatron-LM (arXiv:2104.04473, section 5.1) and PaLM (arXiv:2204.02311,
appendix B), only matrix products count, attention as if it had no mask, and recomputed activations do not: these are the operations of
the model, whatever a run does to save memory. With an adapter, a frozen weight has no gradient, and neither has the input of the first
layer with an adapter. ``tests/unit/plan/test_flops.py`` compares the sum with what torch's FlopCounterMode counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from hydraft.config.choices import QuantKind
from hydraft.config.schema import Config
from hydraft.plan.activations import SOURCES
from hydraft.plan.decoder_layer import Tensor
from hydraft.plan.parameters import HEAD, Layout, Trained

ROUTER = ".mlp.gate"
"""The end of the name of the layer that routes tokens to experts."""

ATTENTION = "attention"
"""In the order of a forward pass, the products of queries, keys and values."""


@dataclass(frozen=True)
class Tokens:
    """What operations depend on: numbers of a batch, or means over a data set."""

    count: float
    """Tokens."""
    trained: float
    """Those that have a loss, and logits."""
    squares: float
    """The sum of the squared lengths of the sequences."""


def operations(config: Config, layout: Layout, learns: Trained, tokens: Tokens) -> float:
    """Of the forward and the backward pass."""
    on = set(learns.targets)
    products = list(_products(layout))
    source = None if learns.full else next((group for group, tensor in products if _module(tensor) in on), None)
    total, reached = 0.0, learns.full
    for group, tensor in products:
        first = group == source  # its input needs no gradient
        reached = reached or first
        if tensor is None:
            begins = source is not None and source == (group[0], "qkv")
            total += 2 * tokens.squares * layout.query * (2 + (_gradients(on, group[0]) if begins else 4 * reached))
            continue
        rests = tokens.trained if tensor.module == HEAD else tokens.count
        if tensor.stacked and layout.mixture is not None:
            rests *= layout.mixture.active / layout.mixture.count
        total += 2 * tensor.count * rests * (1 + (reached and not first) + learns.full)
        if tensor.module in on:
            total += 2 * rests * _adapter(config, tensor, first)
    return total


def _adapter(config: Config, tensor: Tensor, first: bool) -> int:
    """Elements of the matrices of the adapter on a weight, as often as a pass multiplies with them; ``first``: its input needs no gradient."""
    lora, variant = config.lora, config.lora.variant
    rows, columns = tensor.shape
    rank = lora.rank(tensor.module)
    down, up = rank * columns, rows * rank
    if variant.frozen_down and first:
        return down + 2 * up  # nothing before B has a gradient
    passes = down * (1 + (not first)) + 2 * up  # forward, and to the input
    if variant.shared:
        return passes
    if (
        variant.changes_base and config.quant.kind is not QuantKind.none
    ):  # and what is subtracted from the base, which is frozen
        passes += down + up if first else 2 * (down + up)
    return passes + up + (0 if variant.frozen_down else down)


def _gradients(on: set[str], prefix: str) -> int:
    """Products of the backward pass of the first attention that is reached: of the scores, and of those of q, k and v with an adapter."""
    if f"{prefix}.qkv_proj" in on:
        return 4
    query, key, value = (f"{prefix}.{name}_proj" in on for name in "qkv")
    return query + key + value + (query or key)


def _module(tensor: Tensor | None) -> str | None:
    return None if tensor is None else tensor.module


def _products(layout: Layout) -> Iterator[tuple[tuple[str, str], Tensor | None]]:
    """Each matrix product of a forward pass, with what its input is; None for that of queries and keys, and of scores and values."""
    for tensor in layout.tensors:
        if not (tensor.packs or tensor.module == HEAD or tensor.module.endswith(ROUTER)):
            continue
        prefix, _, name = tensor.module.rpartition(".")
        if name == "o_proj":
            yield (prefix, ATTENTION), None
        yield (prefix, SOURCES.get(name, name)), tensor
    if not any(tensor.module == HEAD for tensor in layout.tensors):
        yield ("", HEAD), Tensor(f"{HEAD}.weight", (layout.vocabulary, layout.hidden))
