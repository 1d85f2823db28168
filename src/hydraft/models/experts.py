"""The experts of a mixture: frozen ones are computed without copies of their weights, and quantised to NF4.

transformers 5 keeps the experts of a layer in one module, each projection of all of them in one parameter, whatever the model (the classes
that ``use_experts_implementation`` decorates). bitsandbytes quantises linear layers only, so these parameters, nearly all of a model,
would stay in 16 bits.

transformers' implementations give autograd a view of the weight, as they would of a weight that is trained. Of a frozen weight that is
dequantised, or that ZeRO-3 has gathered, the view would keep all of it in memory until the backward pass, in every layer at once
(``linear_4bit.py`` has the same for linear layers). Here backward reads the parameter again.

Shapes: E experts, O output features, I input features, N tokens, K experts of a token, S = N * K, sorted by expert.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn import Params4bit
from safetensors import safe_open
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _grouped_mm, grouped_mm_experts_forward

from hydraft.models.convert import shards
from hydraft.models.nf4 import BLOCK, Payload, quantise_whole, share_tables
from hydraft.models.streaming import Visit

NAME = "frozen"
"""The value of ``experts_implementation``."""

STORED = re.compile(r"(?<=_proj)\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.bitsandbytes__nf4)$")
"""What the names of the constants of quantised experts have behind the name of the parameter."""

PROJECTIONS = ("gate_up_proj", "up_proj", "down_proj")


def is_experts(module: torch.nn.Module) -> bool:
    """Whether a module has the experts of a layer, as transformers' interface for them describes it."""
    return all(hasattr(module, name) for name in ("has_gate", "has_bias", "is_transposed", "down_proj"))


def is_stacked(module: torch.nn.Module, name: str) -> bool:
    """Whether a module's parameter ``name`` has a projection of all experts: (E, O, I), or (E, I, O)."""
    return name in PROJECTIONS and is_experts(module)


def is_quantised(module: torch.nn.Module) -> bool:
    """Whether a module has experts in 4 bits."""
    return is_experts(module) and any(
        getattr(module._parameters.get(name), "quant_state", None) is not None for name in PROJECTIONS
    )


def stacked(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, str]]:
    """The parameters with a projection of all experts of a layer: full name, module, name in it."""
    for path, module in model.named_modules():
        if is_experts(module):
            yield from ((f"{path}.{name}", module, name) for name in PROJECTIONS if name in module._parameters)


def use(model: PreTrainedModel) -> None:
    """Have a model compute frozen experts as here; a model without experts stays as it is.

    The router's auxiliary loss, which transformers adds to the loss if config.json asks for the router's logits, is left out: it balances
    experts that are trained.
    """
    if getattr(model.config, "output_router_logits", False):
        model.config.output_router_logits = False
    if any(True for _ in stacked(model)):
        ALL_EXPERTS_FUNCTIONS.register(NAME, frozen_experts)
        model.config._experts_implementation = NAME
        for _, module, _ in stacked(model):
            config: Any = module.config  # that of the text model
            config._experts_implementation = NAME


def quantised(value: torch.Tensor, double: bool, storage: torch.dtype) -> torch.nn.Parameter:
    """The NF4 parameter of a ``value`` (E, O, I), whose codes are stored in elements of ``storage``."""
    return _parameter(*quantise_whole(value, double, storage))


def _parameter(codes: torch.Tensor, state: QuantState) -> torch.nn.Parameter:
    made: torch.nn.Parameter = Params4bit(
        codes, requires_grad=False, quant_state=state, bnb_quantized=True, compress_statistics=state.nested, blocksize=BLOCK,
        quant_type="nf4", quant_storage=codes.dtype,
    )  # fmt: skip
    return made


def quantise_read(folder: Path, double: bool, storage: torch.dtype) -> Visit:
    """Has transformers' loader place experts quantised, and everything else as it is.

    Args:
        folder: the checkpoint, which may have them quantised.
        double: whether to quantise the constants of those that it has not.
        storage: the type of the elements in which codes are stored.
    """

    def visit(model: PreTrainedModel, name: str, value: torch.Tensor) -> torch.Tensor:
        module, _, last = name.rpartition(".")
        if not is_stacked(model.get_submodule(module), last):
            return value
        if value.is_floating_point():
            return quantised(value, double, storage)
        expect_constants(model)
        codes = value.view(-1).view(storage).unsqueeze(1)
        return _parameter(codes, stored_constants(folder, name, value.device, storage))

    return visit


def expect_constants(model: PreTrainedModel) -> None:
    """Keep transformers from warning, at the end of loading, that the constants of quantised experts have no place."""
    model._keys_to_ignore_on_load_unexpected = {*(model._keys_to_ignore_on_load_unexpected or ()), STORED.pattern}


def stored_constants(folder: Path, name: str, device: torch.device, dtype: torch.dtype) -> QuantState:
    """The constants of experts that a checkpoint stores in 4 bits (``quantise.py``); ``dtype``: to which they are dequantised."""
    names, places = shards.files(folder)
    with safe_open(folder / (names[0] if places is None else places[name]), framework="pt") as first:
        own = [key for key in (first.keys() if places is None else places) if STORED.sub("", key) == name != key]
    parts: dict[str, torch.Tensor] = {}
    for key in own:
        with safe_open(folder / (names[0] if places is None else places[key]), framework="pt") as file:
            parts[key.removeprefix(f"{name}.")] = file.get_tensor(key)
    state: QuantState = QuantState.from_dict(parts, device=device)
    state.dtype = dtype
    share_tables(state, device)
    return state


def unquantised(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Have zeros, which take no memory, for the weights of quantised experts."""
    for name in PROJECTIONS:
        if (state := getattr(module._parameters.get(name), "quant_state", None)) is not None:
            zeros = torch.zeros((), dtype=dtype).expand(state.shape)
            module._parameters[name] = torch.nn.Parameter(zeros, requires_grad=False)


def hold(module: torch.nn.Module, name: str, payload: Payload, constants: QuantState) -> None:
    """Note that ZeRO-3 shards the parameter ``name`` with its constants in it, as ``payload``."""
    vars(module).setdefault("payloads", {})[name] = payload, constants


def weight(module: torch.nn.Module, name: str) -> torch.Tensor:
    """A projection of all experts as it is multiplied with: dequantised, or the parameter itself, which DeepSpeed has gathered."""
    parameter = module._parameters[name]
    assert parameter is not None and parameter.numel(), "the weight has not been gathered"
    if name in vars(module).get("payloads", {}):
        payload, constants = vars(module)["payloads"][name]
        codes, state = payload.unpacked(parameter.data, constants)
    else:
        codes, state = parameter.detach(), getattr(parameter, "quant_state", None)
    whole: torch.Tensor = codes if state is None else dequantize_4bit(codes, state)
    return whole


class _Frozen(torch.autograd.Function):
    """Products with a frozen projection, each row with that of its expert."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,  # (S, I)
        ends: torch.Tensor,  # (E,): the row behind the last of each expert
        module: Any,
        name: str,
    ) -> torch.Tensor:
        ctx.save_for_backward(ends)
        ctx.module, ctx.name = module, name
        whole = weight(module, name).to(x.dtype)
        return _grouped_mm(x, whole if module.is_transposed else whole.transpose(1, 2), ends)  # (S, O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        (ends,) = ctx.saved_tensors
        whole = weight(ctx.module, ctx.name).to(upstream.dtype)
        whole = whole.transpose(1, 2) if ctx.module.is_transposed else whole
        return _grouped_mm(upstream.contiguous(), whole, ends), None, None, None


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the rows of each expert differ from batch to batch
def frozen_experts(
    self: Any,
    hidden_states: torch.Tensor,  # (N, I)
    top_k_index: torch.Tensor,  # (N, K)
    top_k_weights: torch.Tensor,  # (N, K)
) -> torch.Tensor:
    """``grouped_mm_experts_forward`` of transformers for the experts ``self``, without saving their weights if they are frozen."""
    first = "gate_up_proj" if self.has_gate else "up_proj"
    # An adapter on a projection takes its place, and makes another weight at each access.
    if any(name not in self._parameters or self._parameters[name].requires_grad for name in (first, "down_proj")):
        return grouped_mm_experts_forward(self, hidden_states, top_k_index, top_k_weights)
    count = top_k_index.shape[1]
    expert, order = torch.sort(top_k_index.reshape(-1))
    unused = expert >= self.num_experts  # "no expert" of some models
    expert = expert.clamp(max=self.num_experts - 1)
    ends = torch.bincount(expert, minlength=self.num_experts).cumsum(0).to(torch.int32)
    inner = _projected(self, first, hidden_states[order // count], ends, expert)
    inner = self._apply_gate(inner) if self.has_gate else self.act_fn(inner)
    out = _projected(self, "down_proj", inner, ends, expert)  # (S, H)
    out = out * top_k_weights.reshape(-1)[order].masked_fill(unused, 0).unsqueeze(-1)
    back = torch.empty_like(order)
    back[order] = torch.arange(order.numel(), device=order.device)
    return out[back].view(-1, count, out.shape[-1]).sum(dim=1).to(hidden_states.dtype)


def _projected(module: Any, name: str, x: torch.Tensor, ends: torch.Tensor, expert: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = _Frozen.apply(x, ends, module, name)  # type: ignore[no-untyped-call]
    return out + getattr(module, f"{name}_bias")[expert] if module.has_bias else out
