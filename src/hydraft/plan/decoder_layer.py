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

    @property
    def count(self) -> int:
        """The number of its elements."""
        return prod(self.shape)

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


def decoder_layer(index: int, native: Native, family: Family, sizes: Attention) -> Iterator[Tensor]:
    """One decoder layer, in the order of its forward pass."""
    prefix, hidden, inner = f"model.layers.{index}", native["hidden_size"], native["intermediate_size"]
    inner_bias = bool(native.get("mlp_bias"))
    gates = {"gate_up_proj": 2 * inner} if family.joined_gate else {"gate_proj": inner, "up_proj": inner}
    yield Tensor(f"{prefix}.input_layernorm.weight", (hidden,))
    if family.hybrid and _is_delta_net(index, native):
        yield from _delta_net(f"{prefix}.linear_attn", native)
    else:
        yield from _attention(f"{prefix}.self_attn", native, family, sizes)
    yield Tensor(f"{prefix}.post_attention_layernorm.weight", (hidden,))
    for name, rows in gates.items():
        yield from _linear(f"{prefix}.mlp.{name}", rows, hidden, inner_bias)
    yield from _linear(f"{prefix}.mlp.down_proj", hidden, inner, inner_bias)


def _attention(prefix: str, native: Native, family: Family, sizes: Attention) -> Iterator[Tensor]:
    hidden, attention_bias = native["hidden_size"], bool(native.get("attention_bias"))
    query_bias = attention_bias if family.query_bias is None else family.query_bias
    output_bias = attention_bias if family.output_bias is None else family.output_bias
    query = sizes.query * (1 + family.output_gate)
    for name, rows in (("q", query), ("k", sizes.key), ("v", sizes.key)):
        yield from _linear(f"{prefix}.{name}_proj", rows, hidden, query_bias)
    if family.head_norms:
        yield Tensor(f"{prefix}.q_norm.weight", (sizes.head,))
        yield Tensor(f"{prefix}.k_norm.weight", (sizes.head,))
    yield from _linear(f"{prefix}.o_proj", hidden, sizes.query, output_bias)


def _is_delta_net(index: int, native: Native) -> bool:
    """Whether a layer of a hybrid model is a gated delta net (arXiv:2412.06464); ``layer_types`` decides, else the interval."""
    kinds = native.get("layer_types")
    if kinds:
        return bool(kinds[index] == "linear_attention")
    return bool((index + 1) % native.get("full_attention_interval", 4))


def _delta_net(prefix: str, native: Native) -> Iterator[Tensor]:
    """``Qwen3_5GatedDeltaNet``: keys and values have their own numbers of heads."""
    hidden, heads = native["hidden_size"], native["linear_num_value_heads"]
    keys = native["linear_num_key_heads"] * native["linear_key_head_dim"]
    values = heads * native["linear_value_head_dim"]
    mixed = 2 * keys + values
    yield Tensor(f"{prefix}.dt_bias", (heads,))
    yield Tensor(f"{prefix}.A_log", (heads,))
    yield Tensor(f"{prefix}.conv1d.weight", (mixed, 1, native["linear_conv_kernel_dim"]))
    yield Tensor(f"{prefix}.norm.weight", (native["linear_value_head_dim"],))
    yield from _linear(f"{prefix}.out_proj", hidden, values, False)
    for name, rows in (("qkv", mixed), ("z", values), ("b", heads), ("a", heads)):
        yield from _linear(f"{prefix}.in_proj_{name}", rows, hidden, False)


def _linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (rows, columns), linear=True)
    if bias:
        yield Tensor(f"{name}.bias", (rows,))
