"""The parameters of one decoder layer, from the native config. No torch.

Shapes: H hidden size, F feed-forward size, Q and K features of all query and of all key heads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from hydraft.models.families.base import Family, Native


@dataclass(frozen=True)
class Tensor:
    """A parameter of the model."""

    name: str
    """Its name in the model: ``….weight`` or ``….bias``."""
    shape: tuple[int, ...]
    linear: bool = False
    """Whether it is the weight of a linear layer other than the head: these are quantised, and are peft's all-linear."""
    stacked: bool = False
    """Whether it has a projection of all experts of a layer, which is quantised to NF4 too, and is no layer of its own."""

    @property
    def count(self) -> int:
        """The number of its elements."""
        return prod(self.shape)

    @property
    def packs(self) -> bool:
        """Whether ``quant=nf4`` quantises it."""
        return self.linear or self.stacked

    @property
    def module(self) -> str:
        """The module that holds it."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Attention:
    """The sizes of a model's attention."""

    query: int
    """Features of all query heads."""
    key: int
    """Features of all key heads, and of all value heads."""
    head: int
    """Features of a head."""


@dataclass(frozen=True)
class DeltaNets:
    """The gated delta nets of a hybrid model (arXiv:2412.06464)."""

    layers: frozenset[int]
    """The decoder layers that have one instead of attention."""
    heads: int
    """Value heads."""
    key: int
    """Features of a key head."""
    value: int
    """Features of a value head."""
    mixed: int
    """Features of all queries, keys and values before the keys are repeated for the value heads."""
    kernel: int
    """Tokens that the convolution sees."""


@dataclass(frozen=True)
class Experts:
    """The mixtures of experts of a model (arXiv:2101.03961), one in each layer."""

    count: int
    """Experts of a layer."""
    active: int
    """Experts that compute a token."""
    inner: int
    """The feed-forward size of one."""


def experts(native: Native, family: Family) -> Experts | None:
    """The experts of a native config; None without any."""
    if not family.experts:
        return None
    count = native.get("num_experts") or native["num_local_experts"]  # as published, and as transformers 5 writes it
    return Experts(count, native["num_experts_per_tok"], native["moe_intermediate_size"])


def delta_nets(native: Native, family: Family) -> DeltaNets | None:
    """The gated delta nets of a native config: those in ``layer_types``, else all layers but each ``full_attention_interval``-th."""
    if not family.hybrid:
        return None
    count, interval = native["num_hidden_layers"], native.get("full_attention_interval", 4)
    kinds = native.get("layer_types") or [
        "linear_attention" if (index + 1) % interval else "full_attention" for index in range(count)
    ]
    heads, key, value = (native[f"linear_{name}"] for name in ("num_value_heads", "key_head_dim", "value_head_dim"))
    mixed = 2 * native["linear_num_key_heads"] * key + heads * value
    layers = frozenset(index for index, kind in enumerate(kinds) if kind == "linear_attention")
    return DeltaNets(layers, heads, key, value, mixed, native["linear_conv_kernel_dim"])


def decoder_layer(
    index: int, native: Native, family: Family, sizes: Attention, nets: DeltaNets | None
) -> Iterator[Tensor]:
    """One decoder layer, in the order of its forward pass."""
    prefix, hidden, inner = f"model.layers.{index}", native["hidden_size"], native["intermediate_size"]
    inner_bias = bool(native.get("mlp_bias"))
    gates = {"gate_up_proj": 2 * inner} if family.joined_gate else {"gate_proj": inner, "up_proj": inner}
    yield Tensor(f"{prefix}.input_layernorm.weight", (hidden,))
    if nets is not None and index in nets.layers:
        yield from _delta_net(f"{prefix}.linear_attn", hidden, nets)
    else:
        yield from _attention(f"{prefix}.self_attn", native, family, sizes)
    yield Tensor(f"{prefix}.post_attention_layernorm.weight", (hidden,))
    if (mixture := experts(native, family)) is not None:
        yield from _mixture(f"{prefix}.mlp", hidden, mixture)
        return
    for name, rows in gates.items():
        yield from _linear(f"{prefix}.mlp.{name}", rows, hidden, inner_bias)
    yield from _linear(f"{prefix}.mlp.down_proj", hidden, inner, inner_bias)
    for name in family.more_norms:
        yield Tensor(f"{prefix}.{name}.weight", (hidden,))


def _mixture(prefix: str, hidden: int, mixture: Experts) -> Iterator[Tensor]:
    count, inner = mixture.count, mixture.inner
    yield Tensor(f"{prefix}.gate.weight", (count, hidden))
    yield Tensor(f"{prefix}.experts.gate_up_proj", (count, 2 * inner, hidden), stacked=True)
    yield Tensor(f"{prefix}.experts.down_proj", (count, hidden, inner), stacked=True)


def _attention(prefix: str, native: Native, family: Family, sizes: Attention) -> Iterator[Tensor]:
    hidden, attention_bias = native["hidden_size"], bool(native.get("attention_bias"))
    query_bias = attention_bias if family.query_bias is None else family.query_bias
    output_bias = attention_bias if family.output_bias is None else family.output_bias
    query = sizes.query * (1 + family.output_gate)
    mixed = {"q": query, "k": sizes.key, "v": sizes.key}
    for name, rows in {"qkv": sum(mixed.values())}.items() if family.joined_query else mixed.items():
        yield from _linear(f"{prefix}.{name}_proj", rows, hidden, query_bias)
    if family.head_norms:
        yield Tensor(f"{prefix}.q_norm.weight", (sizes.head,))
        yield Tensor(f"{prefix}.k_norm.weight", (sizes.head,))
    yield from _linear(f"{prefix}.o_proj", hidden, sizes.query, output_bias)


def _delta_net(prefix: str, hidden: int, nets: DeltaNets) -> Iterator[Tensor]:
    values = nets.heads * nets.value
    yield Tensor(f"{prefix}.dt_bias", (nets.heads,))
    yield Tensor(f"{prefix}.A_log", (nets.heads,))
    yield Tensor(f"{prefix}.conv1d.weight", (nets.mixed, 1, nets.kernel))
    yield Tensor(f"{prefix}.norm.weight", (nets.value,))
    yield from _linear(f"{prefix}.out_proj", hidden, values, False)
    for name, rows in (("qkv", nets.mixed), ("z", values), ("b", nets.heads), ("a", nets.heads)):
        yield from _linear(f"{prefix}.in_proj_{name}", rows, hidden, False)


def _linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (rows, columns), linear=True)
    if bias:
        yield Tensor(f"{name}.bias", (rows,))
