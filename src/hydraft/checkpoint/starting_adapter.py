"""Loads the adapter of ``lora.start`` into a model that has a new one, before there is an engine."""

import json
from pathlib import Path
from typing import Any

import deepspeed
import peft
import torch
import torch.distributed as dist
from safetensors import safe_open

from hydraft.errors import ConfigError
from hydraft.models import adapter_files, base_identity, exchange, lora_init

Parameters = dict[str, torch.nn.Parameter]


def saved_names(model: peft.PeftModel) -> Parameters:
    """The parameters of its adapter, by their names in a file that peft writes."""
    parameters: dict[str, Any] = dict(model.named_parameters())
    found = peft.get_peft_model_state_dict(model, parameters, save_embedding_layers=False)
    return dict(found)


@torch.no_grad()
def load(model: peft.PeftModel, start: str, base_sha256: str | None = None) -> None:
    """Replace the weights of the adapter by those of the folder ``start``. Rank 0 reads and broadcasts.

    They are cast to the data type of the parameters, as peft does. Under ZeRO-3, one parameter at a time is whole.

    Args:
        base_sha256: ``base_identity.fingerprint`` of the loaded base, on rank 0.

    Raises:
        ConfigError: on every rank, if the file does not have the tensors of the model's adapter, or is for another base.
    """
    parameters, folder = saved_names(model), Path(start)
    fault = _fault(parameters, folder, base_sha256) if dist.get_rank() == 0 else None
    if (fault := exchange.broadcast(fault)) is not None:
        raise ConfigError(f"lora.start={start}: {fault}")
    file: Any = safe_open(folder / adapter_files.WEIGHTS, framework="pt") if dist.get_rank() == 0 else None
    for name, parameter in parameters.items():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        value = torch.empty(shape, dtype=torch.float32) if file is None else file.get_tensor(name).float()
        _place(parameter, value)


def _place(parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
    """Give ``parameter`` the ``value`` of rank 0 on every rank."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    sharded = hasattr(parameter, "ds_id")
    value = value.to(device).contiguous()
    dist.broadcast(value, 0)
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=sharded):
        if not sharded or dist.get_rank() == 0:
            parameter.copy_(value)


@torch.no_grad()
def load_frozen(model: Any, folder: Path) -> None:
    """Restore what an adapter needs and no step changes from the checkpoint ``folder``. Rank 0 reads and broadcasts."""
    if not isinstance(model, peft.PeftModel):
        return
    kept = lora_init.saved(model)
    fixed = {name: (value, 0) for name, value in kept.items() if ".lora_A." in name and not value.requires_grad}
    for name, value in (lora_init.first(model) or {}).items():  # it is saved behind the trained one
        fixed[name] = value, getattr(kept[name], "ds_shape", kept[name].shape)[0 if ".lora_A." in name else 1]
    file: Any = safe_open(folder / adapter_files.WEIGHTS, framework="pt") if dist.get_rank() == 0 else None
    for name, (parameter, start) in fixed.items():
        read = torch.empty(getattr(parameter, "ds_shape", parameter.shape), dtype=torch.float32)
        if file is not None:
            whole = file.get_tensor(name.replace(f".{lora_init.NAME}", "")).float()
            read = whole[start:] if ".lora_A." in name else -whole[:, start:]
        _place(parameter, read)


def _fault(parameters: Parameters, folder: Path, base_sha256: str | None) -> str | None:
    """Why the adapter in ``folder`` cannot be that of the model; None if it can."""
    try:
        shapes = adapter_files.read(folder, "it").shapes or {}
        recorded = _recorded_base(folder)
    except ConfigError as error:
        return str(error)
    if None not in (recorded, base_sha256) and recorded != base_sha256:
        return f"was trained on another base (sha256 {str(recorded)[:12]}) than the one that was loaded"
    wanted = {name: tuple(getattr(one, "ds_shape", one.shape)) for name, one in parameters.items()}
    if missing := sorted(wanted.keys() - shapes.keys()):
        return (
            f"has no {missing[0]} ({len(missing)} of {len(wanted)} tensors are missing): leave lora.target_modules out, "
            "or use the model that it was trained on"
        )
    if further := sorted(shapes.keys() - wanted.keys()):
        return (
            f"has {further[0]}, which the model's adapter has not ({len(further)} such tensors): leave lora.target_modules out, "
            "or use the model that it was trained on"
        )
    for name, shape in wanted.items():
        if shapes[name] != shape:
            return f"{name} has shape {shapes[name]}, and the model needs {shape}: use the model that it was trained on"
    with safe_open(folder / adapter_files.WEIGHTS, framework="pt") as file:
        spoiled = (name for name in wanted if not torch.isfinite(file.get_tensor(name)).all())
        return next((f"{name} is not finite" for name in spoiled), None)


def _recorded_base(folder: Path) -> str | None:
    try:
        found = json.loads((folder / base_identity.NAME).read_text(encoding="utf-8"))["base"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if found is None else str(found)
