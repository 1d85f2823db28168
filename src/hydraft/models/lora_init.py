"""First weights of a new adapter that peft does not make itself: those that are taken from a quantised or a sharded base.

Shapes: O output features, I input features, r the rank.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import deepspeed
import peft
import torch
import torch.distributed as dist
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Linear
from peft.utils.loftq_utils import _low_rank_decomposition
from transformers import PreTrainedModel

from hydraft.config.lora import LoraConfig
from hydraft.errors import ConfigError
from hydraft.models import linear_4bit, lora, nf4

NAME, FIRST = "default", "first"
"""The adapter that is trained; and the frozen one whose update is subtracted, with the first weights of the other."""

ERROR = "_hydraft_error"


def layers(model: torch.nn.Module) -> Iterator[Any]:
    """The layers that have an adapter."""
    return (module for module in model.modules() if isinstance(module, LoraLayer))


def check_rank(model: torch.nn.Module, section: LoraConfig) -> None:
    """Refuse a rank that a weight does not have, of which peft would make smaller matrices.

    Raises:
        ConfigError: the message has the sizes.
    """
    if section.variant.computed:
        for layer in layers(model):
            section.check_rank(layer.r[NAME], layer.out_features, layer.in_features)


def adapted(base: PreTrainedModel, section: LoraConfig, quantised: bool, in_fp32: bool) -> peft.PeftModel:
    """``base``, which is changed, with a new adapter.

    Args:
        quantised: whether the base is.
        in_fp32: whether the adapter is in fp32 over a 16-bit base.

    Raises:
        ConfigError: the adapter does not fit the model.
    """
    targets = lora.targets(section, base)
    settings = lora.adapter(section, targets, quantised, lora.copied(section, base, targets))
    assert settings is not None
    try:
        model = peft.get_peft_model(base, settings, autocast_adapter_dtype=in_fp32)
    except ValueError as error:
        raise ConfigError(f"lora.target_modules={section.target_modules}: {error}") from error
    assert isinstance(model, peft.PeftModel)
    check_rank(model, section)
    initialise(model, section)
    return model


def refuse_stored(stored: bool, rank: int) -> None:
    """Refuse to find what quantising has lost of a checkpoint that is ``stored`` quantised.

    Raises:
        ConfigError: the message has what to use.
    """
    if stored and rank:
        raise ConfigError(
            "lora=loftq needs the unquantised weights, and this checkpoint is stored quantised: use lora=default, or "
            "model.path=<the unquantised checkpoint>"
        )


@torch.no_grad()
def initialise(model: peft.PeftModel, section: LoraConfig) -> None:
    """Give a new adapter the first weights of its variant, the same on every rank."""
    variant = section.variant
    if variant.changes_base and _is_quantised(model):
        _subtract(model, section)
    if variant.reads_error:
        _correct(model)
    if variant.computed:
        share(model)
    freeze(model, section)


def freeze(model: peft.PeftModel, section: LoraConfig) -> None:
    """Freeze what the variant does not train."""
    for name, parameter in model.named_parameters():
        if f".{FIRST}." in name or (section.variant.frozen_down and ".lora_A." in name):
            parameter.requires_grad_(False)


def saved(model: peft.PeftModel) -> dict[str, torch.nn.Parameter]:
    """What is saved of an adapter, by name: what is trained, and frozen matrices that it needs."""
    kept = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or (".lora_" in name and f".{NAME}." in name)
    }
    for name in ("vera_A", "vera_B"):
        if (shared := getattr(model.base_model, name, None)) is not None:
            kept[f"base_model.{name}.{NAME}"] = shared[NAME]
    return kept


def first(model: peft.PeftModel) -> dict[str, torch.nn.Parameter] | None:
    """The frozen adapter whose update is subtracted, by the names of the trained one; None if there is none."""
    if FIRST not in model.peft_config:
        return None
    own = ((name.split(f".{FIRST}."), value) for name, value in model.named_parameters() if f".{FIRST}." in name)
    return {f".{NAME}.".join(parts): value for parts, value in own}


@torch.no_grad()
def share(model: torch.nn.Module) -> None:
    """Broadcast the adapter of rank 0: decompositions on another device differ in their last bits or in their signs."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            value = parameter.detach().to(device).contiguous()
            dist.broadcast(value, 0)
            parameter.copy_(value)


def _is_quantised(model: torch.nn.Module) -> bool:
    return any(hasattr(layer.get_base_layer().weight, "quant_type") or _is_8bit(layer) for layer in layers(model))


def _is_8bit(layer: Any) -> bool:
    return type(layer.get_base_layer().weight).__name__ == "Int8Params"


@contextlib.contextmanager
def _gathered(weight: torch.nn.Parameter) -> Iterator[None]:
    with deepspeed.zero.GatheredParameters([weight], enabled=hasattr(weight, "ds_id")):
        yield


def dequantised(base: Any) -> torch.Tensor:
    """The weight (O, I) that a layer of the base computes with, in fp32."""
    with _gathered(base.weight):
        return linear_4bit.dequantised(base).detach().to(torch.float32, copy=True)


def _subtract(model: peft.PeftModel, section: LoraConfig) -> None:
    """Start from a part of each weight, and subtract the same part by a frozen adapter; the weight stays as it is quantised.

    PiSSA and OLoRA train W - B0 A0 + B A; in unquantised weights W - B0 A0 is one matrix. A quantised one would not be the sum of the
    original quantised base and an adapter, so that the trained adapter would fit no other copy of the base.
    """
    settings: Any = lora.adapter(section, model.peft_config[NAME].target_modules, quantised=True)
    settings.lora_dropout, settings.bias = 0.0, "none"
    kept = next(layers(model)).lora_A[NAME].weight.dtype
    model.add_adapter(FIRST, settings, autocast_adapter_dtype=kept is torch.float32)
    wanted: Any = lora.adapter(section, "all-linear")
    for layer in layers(model):
        weight = dequantised(layer.get_base_layer())
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = torch.nn.Parameter(weight, requires_grad=False)
        made: Any = Linear(plain, NAME, wanted, r=layer.r[NAME], lora_alpha=layer.lora_alpha[NAME])
        for name in (NAME, FIRST):
            layer.lora_A[name].weight.copy_(made.lora_A[NAME].weight)
            layer.lora_B[name].weight.copy_(made.lora_B[NAME].weight)
        layer.scaling[FIRST] = -layer.scaling[NAME]
    model.base_model.set_adapter([NAME, FIRST])


def remember_error(layer: Linear4bit, weight: torch.Tensor, r: int) -> None:
    """Keep in ``layer`` the matrices B (O, r) and A (r, I) next to what NF4 loses of ``weight`` (O, I), which is being quantised."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    codes, state = nf4.quantise_whole(weight, layer.weight.compress_statistics, torch.uint8, device)
    error = weight.to(device, torch.float32) - dequantize_4bit(codes, state).float()
    found = _low_rank_decomposition(error, r)
    setattr(layer, ERROR, (found["L"].cpu(), found["R"].cpu()))


def _correct(model: peft.PeftModel) -> None:
    """Start from the error of quantisation: W is near Q + B A scaled as the adapter is."""
    for layer in layers(model):
        base = layer.get_base_layer()
        if not hasattr(base, ERROR):  # it is not quantised, and has lost nothing
            continue
        up, down = getattr(base, ERROR)
        root = layer.scaling[NAME] ** 0.5
        layer.lora_A[NAME].weight.copy_(down / root)
        layer.lora_B[NAME].weight.copy_(up / root)
    for module in model.modules():
        if hasattr(module, ERROR):
            delattr(module, ERROR)
