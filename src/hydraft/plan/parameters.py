"""Counts every tensor of a model and of its adapter, from the native config. No torch.

Names and sizes are those of transformers' LlamaForCausalLM and similar models; adapters are counted as peft creates them.
``tests/unit/plan/test_parameters.py`` compares both with the real modules, to the byte.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod

from hydraft.config.choices import QuantKind
from hydraft.config.lora import ALL_LINEAR, LoraConfig, LoraMethod
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.models import lora_targets
from hydraft.models.families.base import ALIBI_FEATURES, Native
from hydraft.models.families.registry import native_family
from hydraft.plan.decoder_layer import Attention, DeltaNets, Experts, Tensor, decoder_layer, delta_nets, experts

EMBEDDING = "model.embed_tokens"

HEAD = "lm_head"
"""The language-model head."""


@dataclass(frozen=True, eq=False)
class Layout:
    """A model's parameters, and the sizes that determine its activations."""

    tensors: tuple[Tensor, ...]
    """In the order of a forward pass."""
    layers: int
    hidden: int
    inner: int
    """The intermediate size of the feed-forward block; of a mixture, that of all experts that compute a token."""
    heads: int
    query: int
    """Features of all query heads."""
    key: int
    """Features of all key heads, and of all value heads."""
    vocabulary: int
    head_norms: bool
    """Whether queries and keys are normalised per head (Qwen3)."""
    alibi: bool
    """Whether it has ALiBi: as a bias in fp32, as features of queries and keys in 16 bits (``models/architectures``)."""
    architecture: str
    """``model_type`` of its config."""
    norms: int = 2
    """RMSNorms of a decoder layer over the hidden states."""
    nets: DeltaNets | None = None
    """The gated delta nets of a hybrid model."""
    mixture: Experts | None = None
    """The experts of a mixture."""

    @cached_property
    def count(self) -> int:
        """The number of parameters."""
        return sum(tensor.count for tensor in self.tensors)

    @property
    def active(self) -> int:
        """The number of parameters that compute a token: of a mixture, those of the experts that it is routed to."""
        if self.mixture is None:
            return self.count
        stacked = sum(tensor.count for tensor in self.tensors if tensor.stacked)
        return self.count - stacked + stacked * self.mixture.active // self.mixture.count

    @property
    def attention_layers(self) -> int:
        """The decoder layers with attention, which keep the keys and values of every token."""
        return self.layers - (len(self.nets.layers) if self.nets is not None else 0)

    def has_net(self, index: int) -> bool:
        """Whether a decoder layer has a gated delta net instead of attention."""
        return self.nets is not None and index in self.nets.layers

    def linears(self, net: bool = False) -> dict[str, tuple[int, ...]]:
        """Shapes of the linear layers of a decoder layer, with attention or with a gated ``net``, by the last part of their names."""
        index = next((index for index in range(self.layers) if self.has_net(index) is net), 0)
        own = (tensor for tensor in self.tensors if tensor.linear and tensor.name.startswith(f"model.layers.{index}."))
        return {tensor.module.rpartition(".")[2]: tensor.shape for tensor in own}

    def features(self, width: int) -> int:
        """Features that a token's query, key and value each have for its position, in all heads, in a type of ``width`` bytes."""
        return self.heads * ALIBI_FEATURES if self.alibi and width == 2 else 0

    def bias(self, width: int, length: int) -> int:
        """Bytes of the bias of a token, for rows of ``length`` tokens; all layers share it."""
        return self.heads * length * width if self.alibi and width == 4 else 0

    @cached_property
    def largest_linear(self) -> int:
        """Elements of the largest weight that can be quantised."""
        return max(tensor.count for tensor in self.tensors if tensor.packs)


def layout(native: Native) -> Layout | None:
    """The parameters of a native config; None for an architecture without a ``Family``."""
    family = native_family(str(native.get("model_type")))
    if family is None or native.get("mlp_only_layers") or native.get("decoder_sparse_step", 1) != 1:
        return None  # or some of its layers are a mixture, and others are not
    hidden, heads = native["hidden_size"], native["num_attention_heads"]
    size = native.get("head_dim") or hidden // heads
    keys = native.get("num_key_value_heads") or heads
    mixture = experts(native, family)
    inner = native["intermediate_size"] if mixture is None else mixture.active * mixture.inner
    vocabulary, nets = native["vocab_size"], delta_nets(native, family)
    tensors = [Tensor("model.embed_tokens.weight", (vocabulary, hidden))]
    for index in range(native["num_hidden_layers"]):
        tensors += decoder_layer(index, native, family, Attention(heads * size, keys * size, size), nets)
    tensors.append(Tensor("model.norm.weight", (hidden,)))
    if not native.get("tie_word_embeddings", family.tied):
        tensors.append(Tensor("lm_head.weight", (vocabulary, hidden)))
    return Layout(
        tuple(tensors), native["num_hidden_layers"], hidden, inner, heads, heads * size,
        keys * size,
        vocabulary, family.head_norms, family.alibi, native["model_type"], 2 + len(family.more_norms), nets,
        mixture,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Trained:
    """The trained tensors."""

    adapter: tuple[int, ...]
    """Elements of each tensor of the adapter."""
    base: tuple[int, ...]
    """Elements of each trained tensor of the base: all of them in full fine-tuning."""
    targets: tuple[str, ...]
    """Names of the modules with an adapter."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Of each tensor, in the order of ``tensors``."""
    ends: frozenset[int] = frozenset()
    """Places of the tensors of the embedding and of the language-model head, or of an adapter on it."""
    frozen: tuple[int, ...] = ()
    """Elements of each frozen tensor of the adapter: as many for each target."""
    shared: int = 0
    """Elements of the buffers that all targets share."""
    copies: tuple[int, ...] = ()
    """Elements of each trained copy of a tensor of the base, which is there too."""

    @cached_property
    def count(self) -> int:
        """The number of parameters."""
        return sum(self.tensors)

    @property
    def full(self) -> bool:
        """Whether this is full fine-tuning."""
        return not self.targets

    @cached_property
    def tensors(self) -> tuple[int, ...]:
        """Elements of each trained tensor."""
        return self.adapter + self.base + self.copies


def trained(layout: Layout, lora: LoraConfig, quantised: bool = False) -> Trained:
    """The tensors that ``lora`` trains, and those that it has besides.

    A (r, in) and B (out, r) on each target (LoRA, arXiv:2106.09685, section 4.1); DoRA adds a magnitude per row
    (arXiv:2402.09353, equation 5). VeRA trains vectors (out) and (r), and has one A and B for the largest sizes (arXiv:2310.11454).

    Args:
        quantised: whether the base is; PiSSA and OLoRA then have a second, frozen adapter.

    Raises:
        ConfigError: no layer matches ``lora.target_modules``, or a layer has no such rank.
    """
    if lora.method is LoraMethod.none:
        return Trained(
            (), tuple(tensor.count for tensor in layout.tensors), (), tuple(tensor.shape for tensor in layout.tensors),
            frozenset(place for place, tensor in enumerate(layout.tensors) if tensor.module in (EMBEDDING, HEAD)),
        )  # fmt: skip
    matrices = [tensor for tensor in layout.tensors if len(tensor.shape) == 2]
    if not any(tensor.module == HEAD for tensor in matrices):  # tied: no weight of its own, but a layer
        matrices.append(Tensor(f"{HEAD}.weight", (layout.vocabulary, layout.hidden)))
    on = _targeted(layout, matrices, lora)
    targets = [tensor for tensor in matrices if tensor.module in on]
    lora.check_linear([tensor.module for tensor in targets if not (tensor.linear or tensor.module == HEAD)])
    shapes: list[tuple[int, ...]] = []
    ends: list[int] = []
    frozen: list[int] = []
    for tensor in targets:
        own, fixed = _matrices(lora, tensor, quantised)
        ends += range(len(shapes), len(shapes) + len(own)) if tensor.module in (EMBEDDING, HEAD) else []
        shapes += own
        frozen += fixed
    shared = lora.r * sum(max(sizes) for sizes in zip(*(tensor.shape for tensor in targets), strict=True))
    biases = [tensor for tensor in layout.tensors if tensor.name.endswith(".bias")]
    learns = {"all": biases, "lora_only": [bias for bias in biases if bias.module in on]}.get(lora.bias, [])
    copies = _copies(layout, matrices, lora, on, quantised)
    before = len(shapes) + len(learns)
    ends += [before + place for place, copy in enumerate(copies) if copy.module in (EMBEDDING, HEAD)]
    return Trained(
        tuple(map(prod, shapes)), tuple(bias.count for bias in learns), tuple(tensor.module for tensor in targets),
        (*shapes, *(bias.shape for bias in learns), *(copy.shape for copy in copies)),
        frozenset(ends), tuple(frozen), shared if lora.variant.shared else 0,
        tuple(copy.count for copy in copies),
    )  # fmt: skip


def _copies(layout: Layout, matrices: list[Tensor], lora: LoraConfig, on: set[str], quantised: bool) -> list[Tensor]:
    """The tensors that ``lora.modules_to_save`` copies."""
    if not lora.modules_to_save:
        return []
    tensors = {tensor.name: tensor for tensor in (*layout.tensors, *matrices)}.values()
    own = {tensor.module for tensor in tensors} - {tensor.module for tensor in tensors if quantised and tensor.linear}
    found = lora_targets.copied(lora, own, on)
    return [tensor for tensor in tensors if tensor.module in found]


def trained_in(layout: Layout, config: Config) -> Trained:
    """``trained`` by a run."""
    return trained(layout, config.lora, config.quant.kind is not QuantKind.none)


def _matrices(lora: LoraConfig, tensor: Tensor, quantised: bool) -> tuple[list[tuple[int, ...]], list[int]]:
    """Shapes of the trained tensors of the adapter on a weight (rows, columns), and elements of the frozen ones."""
    (rows, columns), r = tensor.shape, lora.rank(tensor.module)
    lora.check_rank(r, rows, columns)
    variant, down, up = lora.variant, (r, columns), (rows, r)
    if variant.shared:
        return [(rows,), (r,)], []
    if variant.frozen_down:
        return [up], [prod(down)]
    first = [prod(down), prod(up)] if variant.changes_base and quantised else []
    return [down, up, *([(rows,)] if variant.magnitude else [])], first


def _targeted(layout: Layout, matrices: list[Tensor], lora: LoraConfig) -> set[str]:
    """The modules that ``lora.target_modules`` matches, by peft's rules."""
    linear = [tensor.module for tensor in matrices if tensor.linear]
    modules = _modules(layout)
    targets = lora_targets.resolve(lora, modules, linear)
    if targets == ALL_LINEAR:
        return set(linear)
    found = lora_targets.matching(targets, modules)
    if other := sorted(found - {tensor.module for tensor in matrices}):
        known = ", ".join(dict.fromkeys([*layout.linears(), *layout.linears(net=True)]))
        raise ConfigError(
            f"lora.target_modules={lora.targets}: matches {other[0]}, which is no linear layer (linear layers are: {known}, {HEAD})"
        )
    return found


def _modules(layout: Layout) -> list[str]:
    """Every module of the model: those with parameters, and those that hold them (``model.layers.0.mlp``), and the head even if it is tied."""
    found = {HEAD: None}
    for tensor in layout.tensors:
        parts = tensor.module.split(".")
        found |= dict.fromkeys(".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return list(found)
