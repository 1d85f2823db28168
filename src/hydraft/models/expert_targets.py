"""What an adapter covers in a mixture of experts.

peft 0.21 reads some names of layers as those of the experts, as checkpoints had them before their projections were joined
(``_MOE_TARGET_MODULE_MAPPING``): ``all-linear`` would adapt every expert and the router, and ``gate_proj`` of a shared expert all others.
"""

from collections.abc import Iterable

import torch
from peft.utils import transformers_weight_conversion as conversion

from hydraft.config.choices import QuantKind
from hydraft.config.lora import ALL_LINEAR
from hydraft.errors import ConfigError
from hydraft.models import experts, lora_targets


def has_experts(model: torch.nn.Module) -> bool:
    """Whether a layer of the model is a mixture of experts."""
    return any(experts.is_experts(module) for module in model.modules())


def check(model: torch.nn.Module, quant: QuantKind) -> None:
    """Refuse a quantisation that leaves the experts in 16 bits; ``model`` may be on the meta device.

    Raises:
        ConfigError: names what to use instead.
    """
    if quant is QuantKind.int8 and has_experts(model):
        raise ConfigError(
            "quant=int8: the experts of this model, nearly all of its weights, would stay in 16 bits: use quant=nf4 or quant=none"
        )


def in_16_bits(model: torch.nn.Module) -> str | None:
    """Which weights ``quant=nf4`` has left in 16 bits, if they are a tenth of a model: experts of a kind that ``experts.py`` does not know."""
    left, every, largest = 0, 0, ("", 0)
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            state = getattr(parameter, "quant_state", None)
            count = int(getattr(parameter, "ds_numel", parameter.numel()) if state is None else state.shape.numel())
            every += count
            if state is None and len(getattr(parameter, "ds_shape", parameter.shape)) == 3 and "conv" not in path:
                left += 0 if name in vars(module).get("payloads", {}) else count
                largest = max(
                    largest, (f"{path}.{name}".removeprefix("base_model.model."), count), key=lambda one: one[1]
                )
    if 10 * left < every:
        return None
    return f"{left:,} weights have no 4-bit form here and stay in 16 bits, such as {largest[0]}"


def adaptable(model: torch.nn.Module, linear: Iterable[str]) -> list[str]:
    """The layers among ``linear`` that ``all-linear`` means: neither routers nor what peft takes for experts."""
    if not has_experts(model):
        return list(linear)
    taken = _taken_for_experts(model)
    leaves = ((name, name.rpartition(".")[2]) for name in linear)
    return [
        name for name, leaf in leaves if leaf not in taken and leaf != "gate" and not leaf.endswith(("_gate", "router"))
    ]


def named(model: torch.nn.Module, found: list[str] | str, linear: list[str]) -> list[str] | str:
    """The ``target_modules`` of peft for ``found`` (``lora_targets.resolve``); ``linear``: see ``adaptable``.

    Raises:
        ConfigError: peft would adapt other layers than those that are named.
    """
    if not has_experts(model):
        return found
    if found == ALL_LINEAR:
        return list(dict.fromkeys(_shortest(name, linear, dict(model.named_modules())) for name in linear))
    matched = lora_targets.matching(found, dict(model.named_modules()))
    if wrong := sorted({name.rpartition(".")[2] for name in matched} & _taken_for_experts(model)):
        raise ConfigError(
            f"lora.target_modules={found}: peft takes {wrong[0]} in this model for a projection of its experts, not for a layer: leave it "
            f"out (all-linear means {', '.join(dict.fromkeys(name.rpartition('.')[2] for name in linear))} here)"
        )
    return found


def _taken_for_experts(model: torch.nn.Module) -> set[str]:
    kind = conversion._MODEL_TO_CONVERSION_PATTERN.get(str(getattr(model.config, "model_type", "")), "")
    return {
        old for old, new in conversion._MOE_TARGET_MODULE_MAPPING.get(kind, {}).items() if new in experts.PROJECTIONS
    }


def _shortest(name: str, linear: list[str], modules: Iterable[str]) -> str:
    """The last part of a layer's name, if it has no other layer that is not among ``linear``."""
    leaf = name.rpartition(".")[2]
    return leaf if lora_targets.matching([leaf], modules) <= set(linear) else name
