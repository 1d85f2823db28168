"""Estimates the memory of activations that a forward pass saves for the backward pass. No torch.

After Korthikanti et al. 2022 (arXiv:2205.05198, section 4.1), who count what each operation of a GPT layer saves; here for
RMSNorm, SwiGLU, grouped queries and frozen weights, as transformers computes them. A frozen matrix needs the gradient of its output
but not its input, so an input is saved only if an adapter (or the weight itself) is trained. Scores (T, T) are never saved: sdpa
and flash attention recompute them (arXiv:2205.14135). ``tests/unit/plan/test_activations.py`` compares the sum with what autograd
saves.

Shapes: N tokens of a micro-batch, L of them trained, H hidden, Q and K features of all query and key heads, F feed-forward, V
vocabulary; ``width`` bytes per element in the compute type.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from hydraft.config.choices import Batching, Kernels, QuantKind
from hydraft.config.lora import LoraMethod
from hydraft.config.schema import Config
from hydraft.models.loss import ROWS, chunked
from hydraft.plan.parameters import Layout, Trained

CHUNK = 64
"""Tokens that a gated delta net computes at once (``chunk_size`` of ``torch_chunk_gated_delta_rule``)."""

SOURCES = {"in_proj_qkv": "net", "in_proj_z": "net", "in_proj_b": "net", "in_proj_a": "net"} | {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "gate_proj": "up",
    "up_proj": "up",
}
"""Layers that read the same input."""


@dataclass(frozen=True)
class Activations:
    """Bytes at the two possible peaks: the loss, and the backward pass of a layer."""

    at_loss: int
    """Saved by all layers when the loss is computed."""
    at_layer: int
    """The same; with recomputation, plus the recomputed activations of one layer."""
    logits: int
    """Log-probabilities and their gradients, at the loss only."""
    working: int
    """Gradients of activations in the backward pass of one layer."""


def activations(config: Config, layout: Layout, learns: Trained, width: int, tokens: int, labelled: int) -> Activations:
    """Bytes that a micro-batch of ``tokens`` tokens needs, of which ``labelled`` are trained."""
    each = {kind: tokens * _layer(config, layout, *kind, width) for kind in _adapted(layout, learns)}
    ends = tokens * layout.hidden * (width + 4)  # the embedding's output, and the last norm's input in fp32
    ends += tokens * layout.bias(width, config.data.max_length if config.data.batching is Batching.padded else tokens)
    if config.train.recomputes:
        kept = layout.layers * tokens * layout.hidden * width + ends  # the input of each layer
        at_layer = kept + max(each.values())
    else:
        kept = at_layer = ends + sum(each[kind] * count for kind, count in _adapted(layout, learns).items())
    # In fp32: the log-softmax, the gradient of the loss, and that of the log-softmax. The logits are freed by then.
    logits = labelled * layout.vocabulary * 12
    if config.kernels.kind is not Kernels.torch:
        # The logits of one of their chunks take about as much as all hidden states (Liger, arXiv:2410.10989, 3.2).
        logits = labelled * layout.hidden * (2 * width + 8)
    elif chunked(config, layout.architecture, layout.vocabulary):
        # A chunk's logits and log-probabilities in fp32; of all trained tokens, their hidden states and the gradients of these.
        logits = min(labelled, ROWS) * layout.vocabulary * 8 + labelled * layout.hidden * 2 * width
    working = tokens * (3 * width * layout.inner + 12 * layout.hidden + 2 * width * _routed(layout))
    return Activations(kept, at_layer, logits, working)


def _routed(layout: Layout) -> int:
    """Features of the rows that a token has at the experts of a layer."""
    return 0 if layout.mixture is None else layout.mixture.active * layout.hidden


@lru_cache
def _adapted(layout: Layout, learns: Trained) -> Counter[tuple[frozenset[str], bool]]:
    """The linear layers with an adapter in a decoder layer and whether it has a gated delta net; how many layers are alike."""
    on: list[set[str]] = [set() for _ in range(layout.layers)]
    for target in learns.targets:
        parts = target.split(".")
        if parts[:2] == ["model", "layers"]:
            on[int(parts[2])].add(parts[-1])
    return Counter((frozenset(names), layout.has_net(index)) for index, names in enumerate(on))


def _layer(config: Config, layout: Layout, on: frozenset[str], net: bool, width: int) -> int:
    """Bytes per token that one decoder layer saves, with adapters on the layers ``on``."""
    if net:
        saved = 2 * 4 * layout.hidden + _delta_net(layout, width) + 3 * width * layout.inner
        return saved + _inputs(config, layout, on, net, width)
    hidden, query, key, inner = layout.hidden, layout.query, layout.key, layout.inner
    norms = layout.norms * 4 * hidden + (
        4 * (query + key) if layout.head_norms else 0
    )  # RMSNorm saves its input in fp32
    attention = width * (2 * query + 2 * key) + 4 * layout.heads  # q, k, v, the output, and a log-sum per head
    attention += 4 * width * layout.features(width)
    if "qkv_proj" in layout.linears():
        attention += width * (query + 2 * key)  # q, k and v are copied out of their matrix
    if config.data.batching is Batching.padded:
        # With a mask, keys and values are repeated for every query head, and the mask (T, T) is saved.
        attention += 2 * width * (query - key)
        attention += 0 if layout.bias(width, 1) else width * config.data.max_length
    swiglu = 3 * width * inner  # gate, silu(gate), up
    return norms + attention + swiglu + _mixture(config, layout, width) + _inputs(config, layout, on, net, width)


def _mixture(config: Config, layout: Layout, width: int) -> int:
    """Bytes per token that a mixture of experts saves besides what is between the projections of the active ones (``models/experts.py``)."""
    if (mixture := layout.mixture) is None:
        return 0
    # The output of each active expert, which is scaled with its weight; the routing in fp32; and where its row is among the sorted ones.
    saved = mixture.active * width * layout.hidden + 4 * mixture.count + 40 * mixture.active
    if config.lora.method is LoraMethod.none:  # the inputs of the router and of both projections
        saved += width * (layout.hidden + mixture.active * layout.hidden + layout.inner)
    return saved


def _delta_net(layout: Layout, width: int) -> int:
    """Bytes per token that transformers' own gated delta net saves, which computes in fp32 and in chunks of 64 tokens.

    Fitted to what autograd saves for 24 random shapes: to 1 % in bf16, to 15 % in fp32. Kernels that recompute save far less.
    """
    nets = layout.nets
    assert nets is not None
    key, value = nets.heads * nets.key, nets.heads * nets.value
    states = nets.heads * nets.key * nets.value / CHUNK
    chunks = 20.6 * CHUNK * nets.heads
    if width == 4:
        return round(10 * nets.mixed + 24.6 * value + 44.5 * key + chunks + 13.2 * states)
    return round(4.1 * nets.mixed + 26 * value + 32 * key + chunks + 4 * states)


def _inputs(config: Config, layout: Layout, on: frozenset[str], net: bool, width: int) -> int:
    """Bytes per token of the inputs that linear layers save, and of the intermediate values of adapters."""
    lora, zero3 = config.lora, config.zero.stage == 3
    full = lora.method is LoraMethod.none
    # The linear function of ZeRO-3 and that of int8 save every input (deepspeed/runtime/zero/linear.py; MatMul8bitLt).
    all_inputs = full or config.quant.kind is QuantKind.int8 or (zero3 and config.quant.kind is QuantKind.none)
    scaled = layout.norms * layout.hidden + (layout.query + layout.key if layout.head_norms else 0)
    kept = width * scaled if full else 0  # a norm with a trained weight saves the values that it scales
    seen: set[str] = set()
    for name, (rows, columns) in layout.linears(net).items():
        source = SOURCES.get(name, name)
        reads = name in on and not (lora.variant.frozen_down or lora.variant.shared)  # a frozen A keeps no input
        if source not in seen and (all_inputs or (reads and not lora.dropout)):
            kept += width * columns
            seen.add(source)
        if name in on:
            kept += width * max(lora.ranks) + (width * rows if lora.variant.shared else 0)
            # each adapter drops other elements; the mask has a byte per element
            kept += (width * reads + 1) * columns if lora.dropout else 0
            kept += 2 * width * rows if lora.variant.magnitude else 0  # the outputs that the magnitude scales
    return kept
