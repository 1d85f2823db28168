"""What a run needs to go on, its weights apart: Adam's state, the schedule, random numbers, counts. No pickle.

Adam's state is gathered into whole fp32 tensors by parameter name, one parameter at a time, so that it fits any number of ranks,
any ZeRO stage and any machine: ``optimizer.safetensors``. The rest is numbers: ``state.json`` and, for each rank's random number
generators, ``random.safetensors``.

Names of a parameter's tensors: ``param`` (the fp32 weight that Adam steps), ``exp_avg`` and ``exp_avg_sq`` (its moments).
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hydraft.models.convert import shards
from hydraft.system import files

OPTIMIZER, RANDOM, STATE = "optimizer.safetensors", "random.safetensors", "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("param", *MOMENTS)
SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What fp16 goes by in choosing the number that it multiplies a loss with."""
Parameters = dict[str, torch.nn.Parameter]


@torch.no_grad()
def save_optimizer(engine: Any, parameters: Parameters, folder: Path | None) -> dict[str, str]:
    """Write Adam's state and the fp32 weights it steps; every rank must call it, the one with a ``folder`` writes.

    Returns:
        The file's sha256, by its name.
    """
    _make_states(engine)
    names = [(kind, name) for name in parameters for kind in KINDS]
    values = (_get(engine, parameters[name], kind) for kind, name in names)
    if folder is None:
        for _ in values:  # its part of each gathering
            pass
        return {}
    layout = {
        f"{kind}/{name}": shards.Tensor("F32", tuple(getattr(parameters[name], "ds_shape", parameters[name].shape)))
        for kind, name in names
    }
    return {OPTIMIZER: shards.write(folder / OPTIMIZER, layout, (value.cpu() for value in values), lambda _: None)}


@torch.no_grad()
def load_optimizer(engine: Any, parameters: Parameters, folder: Path, step: int) -> None:
    """Set what ``save_optimizer`` wrote; rank 0 reads and tells the others, which need not see ``folder``.

    Args:
        step: optimizer steps that were taken; Adam corrects its moments' bias by it.
    """
    states = _make_states(engine)
    for (kind, name), value in _told(folder, parameters, KINDS):
        _set(engine, parameters[name], kind, value)
    for state in states:
        state["step"] = torch.full_like(state["step"], step) if torch.is_tensor(state["step"]) else step


def adam_step(engine: Any) -> int:
    """Steps that Adam has counted."""
    return int(next(iter(_make_states(engine)))["step"])


def loss_scale(engine: Any) -> dict[str, float]:
    """Where fp16's search for a loss scale stands, the same on every rank; empty in other types."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {name: getattr(scaler, name) for name in SCALE} if getattr(scaler, "dynamic", False) else {}


def set_loss_scale(engine: Any, values: dict[str, float]) -> None:
    """Go on with what ``loss_scale`` found."""
    for name, value in values.items():
        setattr(engine.optimizer.loss_scaler, name, value)


@torch.no_grad()
def begin(engine: Any) -> None:
    """Undo the step that DeepSpeed takes on gradients of 0 to make Adam's state (stage 0 in 16 bits alone).

    It would decay the weights once more, and count in the correction of the moments' bias.
    """
    optimizer = engine.optimizer
    for stored, stepped in zip(
        getattr(optimizer, "fp16_groups", []), getattr(optimizer, "fp32_groups", []), strict=False
    ):
        for low, high in zip(stored, stepped, strict=True):
            high.copy_(low)
            for value in engine.basic_optimizer.state[high].values():
                value.zero_()


@torch.no_grad()
def load_weights(parameters: Parameters, folder: Path) -> None:
    """Set the weights themselves, before there is an engine; rank 0 reads and tells the others."""
    for (_, name), value in _told(folder, parameters, ("param",)):
        parameter = parameters[name]
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id")):
            if not hasattr(parameter, "ds_id") or dist.get_rank() == 0:
                parameter.copy_(value)


def _told(
    folder: Path, parameters: Parameters, kinds: tuple[str, ...]
) -> Iterator[tuple[tuple[str, str], torch.Tensor]]:
    """Each saved tensor of these kinds, read on rank 0 and broadcast, on this rank's card where it has one.

    That is where the links between ranks are fast, wherever the parameter lies: in main memory until there is an engine, or
    for as long as it is offloaded.
    """
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    file = safe_open(folder / OPTIMIZER, framework="pt") if dist.get_rank() == 0 else None
    for name, parameter in parameters.items():
        for kind in kinds:
            shape = getattr(parameter, "ds_shape", parameter.shape)
            value = torch.empty(shape, dtype=torch.float32) if file is None else file.get_tensor(f"{kind}/{name}")  # type: ignore[no-untyped-call]
            value = value.to(device)
            dist.broadcast(value, 0)
            yield (kind, name), value


def _make_states(engine: Any) -> list[dict[str, Any]]:
    """Adam's states on this rank, made as Adam makes them where no step has been taken yet."""
    adam, zero = engine.basic_optimizer, engine.optimizer
    flat = next(
        (
            getattr(zero, name)
            for name in (
                "fp32_partitioned_groups_flat",
                "single_partition_of_fp32_groups",
                "fp32_groups_flat_partition",
            )
            if hasattr(zero, name)
        ),
        [parameter for group in adam.param_groups for parameter in group["params"]],
    )
    for tensor in flat:
        state = adam.state[tensor]
        if not state:
            on_host = type(adam).__name__ == "DeepSpeedCPUAdam"
            counts_on = (
                tensor.device if adam.param_groups[0].get("fused") else "cpu"
            )  # its kernel reads the count itself
            state["step"] = 0 if on_host else torch.zeros((), dtype=torch.float32, device=counts_on)
            for kind in MOMENTS:
                state[kind] = torch.zeros_like(tensor.detach())
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        # linked within the first group's step, it took the second group's state, which was not there yet, for empty
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
    return [adam.state[tensor] for tensor in flat]


def _whole(engine: Any, parameter: torch.nn.Parameter) -> torch.Tensor | None:
    """The tensor that Adam steps for a parameter where a rank has all of it (stage 0); None where it is sharded."""
    optimizer = engine.optimizer
    if optimizer is engine.basic_optimizer:  # fp32: the parameter itself
        return parameter
    for stored, stepped in zip(
        getattr(optimizer, "fp16_groups", []), getattr(optimizer, "fp32_groups", []), strict=False
    ):
        for low, high in zip(stored, stepped, strict=True):
            if low is parameter:
                return high  # type: ignore[no-any-return]
    return None


def _get(engine: Any, parameter: torch.nn.Parameter, kind: str) -> torch.Tensor:
    whole = _whole(engine, parameter)
    if whole is not None:
        value = whole.detach() if kind == "param" else engine.basic_optimizer.state[whole][kind]
    elif kind == "param":
        value = safe_get_full_fp32_param(parameter)
    else:
        value = safe_get_full_optimizer_state(parameter, kind)
    return value.float().contiguous()


def _set(engine: Any, parameter: torch.nn.Parameter, kind: str, value: torch.Tensor) -> None:
    whole = _whole(engine, parameter)
    if whole is not None:
        target = whole.detach() if kind == "param" else engine.basic_optimizer.state[whole][kind]
        target.copy_(value)
    elif hasattr(parameter, "ds_id"):
        _set_shard(parameter, kind, value)
    elif kind == "param":
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, kind)


def _set_shard(parameter: Any, kind: str, value: torch.Tensor) -> None:
    """Set this rank's part under ZeRO-3. DeepSpeed's own setter fails where the parts do not come out even."""
    zero = parameter._z3_optimizer
    key = None if kind == "param" else kind
    part, _ = zero._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=key)
    start = part.numel() * zero._get_param_partition_rank(parameter)
    mine = value.flatten()[start : start + part.numel()]
    part.zero_()  # past the end, the last part is padding
    part[: mine.numel()].copy_(mine)


def random_state() -> dict[str, torch.Tensor]:
    """This rank's random number generators, as integer tensors."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, _ = np.random.get_state(legacy=True)
    assert version == 3 and gauss is None and name == "MT19937" and not has_gauss
    found = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.append(keys, position).astype(np.int64)),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def save_random(folder: Path | None) -> None:
    """Write every rank's generators; every rank must call it, the one with a ``folder`` writes."""
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, random_state())
    if folder is not None:
        save_file(
            {f"{rank}/{name}": tensor for rank, share in enumerate(shares) for name, tensor in share.items()},
            folder / RANDOM,
        )


def load_random(folder: Path) -> bool:
    """Set this rank's generators; False where the run had another number of ranks, and they are left as they are."""
    shared: list[Any] = [load_file(folder / RANDOM) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(shared, 0)
    saved = shared[0]
    if len({name.partition("/")[0] for name in saved}) != dist.get_world_size():
        return False
    rank = dist.get_rank()
    torch.set_rng_state(saved[f"{rank}/torch"])
    random.setstate((3, tuple(saved[f"{rank}/python"].tolist()), None))
    words = saved[f"{rank}/numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words[:-1], int(words[-1]), 0, 0.0))
    if f"{rank}/cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved[f"{rank}/cuda"])
    return True


def save_json(folder: Path, values: dict[str, Any]) -> None:
    """The numbers."""
    files.write_json(folder / STATE, values)


def load_json(folder: Path) -> dict[str, Any]:
    """What ``save_json`` wrote."""
    return dict(json.loads((folder / STATE).read_text(encoding="utf-8")))
