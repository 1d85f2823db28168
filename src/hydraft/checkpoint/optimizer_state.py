"""Saves and restores the optimizer's state and fp32 weights, independent of the number of ranks, the ZeRO stage and the machine. No pickle.

The state is gathered into whole fp32 tensors by parameter name, one parameter at a time: ``optimizer.safetensors``.

Names of a parameter's tensors: ``param`` (the fp32 weight that the optimizer updates), and its moments: ``exp_avg`` and ``exp_avg_sq``
of Adam, ``exp_avg`` of Lion, ``momentum_buffer`` of Muon's matrices, ``row_var`` and ``col_var`` or ``variance`` of Adafactor. Moments of 8
bits are saved in fp32: quantised again in the same blocks they have the same bits, and in those of another topology almost.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from safetensors import safe_open

from hydraft.checkpoint import manifest, moments, swapped_state
from hydraft.models.convert import shards

FILE = manifest.OPTIMIZER
SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""Attributes of fp16's dynamic loss scaler."""
Parameters = dict[str, torch.nn.Parameter]
Entry = tuple[str, str, tuple[int, ...]]
"""The name of a moment, or ``param``, the parameter's name, and the whole tensor's shape."""


@torch.no_grad()
@swapped_state.released
def save_optimizer(engine: Any, parameters: Parameters, folder: Path | None) -> dict[str, str]:
    """Write the optimizer's state and its fp32 weights. Every rank must call it; the one with a ``folder`` writes.

    Returns:
        The file's sha256, by its name.
    """
    with _states(engine, write=False):
        entries = _entries(engine, parameters)
        values = (_get(engine, parameters[name], kind) for kind, name, _ in entries)
        if folder is None:
            for _ in values:  # takes part in gathering each tensor
                pass
            return {}
        layout = {f"{kind}/{name}": shards.Tensor("F32", shape) for kind, name, shape in entries}
        return {FILE: shards.write(folder / FILE, layout, (value.cpu() for value in values), lambda _: None)}


@torch.no_grad()
@swapped_state.released
def load_optimizer(engine: Any, parameters: Parameters, folder: Path, step: int) -> None:
    """Restore what ``save_optimizer`` wrote. Rank 0 reads and broadcasts; the other ranks need no access to ``folder``.

    Args:
        step: the step count of the optimizer, used for bias correction.
    """
    with _states(engine, write=True) as states:
        for (kind, name), value in _broadcast(folder, _entries(engine, parameters), parameters):
            _set(engine, parameters[name], kind, value)
        for state in states:
            state["step"] = torch.full_like(state["step"], step) if torch.is_tensor(state["step"]) else step


def adam_step(engine: Any) -> int:
    """The step count of the optimizer."""
    return int(next(iter(_make_states(engine)))["step"])


def loss_scale(engine: Any) -> dict[str, float]:
    """The state of fp16's dynamic loss scaler, the same on every rank; empty in other precisions."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    return {name: getattr(scaler, name) for name in SCALE} if getattr(scaler, "dynamic", False) else {}


def set_loss_scale(engine: Any, values: dict[str, float]) -> None:
    """Restore the state of the loss scaler."""
    for name, value in values.items():
        setattr(engine.optimizer.loss_scaler, name, value)


@torch.no_grad()
def undo_initial_step(engine: Any) -> None:
    """Undo the step with zero gradients by which DeepSpeed initialises the optimizer's state (only stage 0 in 16 bits).

    It would apply weight decay once more, and count in the bias correction. The first step creates the state again.
    """
    optimizer = engine.optimizer
    for stored, stepped in zip(
        getattr(optimizer, "fp16_groups", []), getattr(optimizer, "fp32_groups", []), strict=False
    ):
        for low, high in zip(stored, stepped, strict=True):
            high.copy_(low)
            engine.basic_optimizer.state.pop(high, None)


@torch.no_grad()
def load_weights(parameters: Parameters, folder: Path) -> None:
    """Restore the weights before there is an engine. Rank 0 reads and broadcasts."""
    entries = [("param", name, _shape(parameter)) for name, parameter in parameters.items()]
    for (_, name), value in _broadcast(folder, entries, parameters):
        parameter = parameters[name]
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id")):
            if not hasattr(parameter, "ds_id") or dist.get_rank() == 0:
                parameter.copy_(value)


def _shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _entries(engine: Any, parameters: Parameters) -> list[Entry]:
    """The tensors of all parameters, in the order in which they are gathered; the same on every rank."""
    stepped, members = moments.shards(engine)
    states = engine.basic_optimizer.state
    of_flat = {id(p): states[flat] for flat, group in zip(stepped, members, strict=True) for p in group}
    found: list[Entry] = []
    for name, parameter in parameters.items():
        whole = _whole(engine, parameter)
        state = of_flat[id(parameter)] if whole is None else states[whole]
        found.append(("param", name, _shape(parameter)))
        for kind in moments.names(state):
            found.append((kind, name, _shape(parameter) if whole is None else tuple(state[kind].shape)))
    return found


def _broadcast(
    folder: Path, entries: list[Entry], parameters: Parameters
) -> Iterator[tuple[tuple[str, str], torch.Tensor]]:
    """Each of these saved tensors, read on rank 0 and broadcast, on this rank's GPU if it has one.

    Broadcasts between GPUs are fast, also for parameters in main memory (before there is an engine, or offloaded).
    """
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    file: Any = safe_open(folder / FILE, framework="pt") if dist.get_rank() == 0 else None
    for kind, name, shape in entries:
        value = torch.empty(shape, dtype=torch.float32) if file is None else file.get_tensor(f"{kind}/{name}")
        value = value.to(device)
        dist.broadcast(value, 0)
        yield (kind, name), value


@contextmanager
def _states(engine: Any, write: bool) -> Iterator[list[dict[str, Any]]]:
    """Within the block, the states on this rank with fp32 moments; with ``write``, they are those of the optimizer afterwards."""
    _make_states(engine)
    stepped, _ = moments.shards(engine)
    try:
        with moments.plain(engine.basic_optimizer, stepped, write):
            _link(engine)
            yield [engine.basic_optimizer.state[tensor] for tensor in stepped]
    finally:
        _link(engine)


def _make_states(engine: Any) -> list[dict[str, Any]]:
    """The optimizer's states on this rank. Before the first step they are created as the optimizer creates them."""
    optimizer, made = engine.basic_optimizer, []
    for number, tensor in enumerate(moments.shards(engine)[0]):
        if not optimizer.state[tensor]:
            with swapped_state.in_memory(engine.optimizer, number):
                moments.create(optimizer, tensor)
        made.append(optimizer.state[tensor])
    return made


def _link(engine: Any) -> None:
    """Have DeepSpeed find the states as they are now: it links those of all groups during the first group's step."""
    zero = engine.optimizer
    if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _whole(engine: Any, parameter: torch.nn.Parameter) -> torch.Tensor | None:
    """The tensor of a parameter that the optimizer updates, if this rank has all of it (stage 0); None if it is sharded."""
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
    whole, swapped = _whole(engine, parameter), swapped_state.gathered(parameter, kind)
    if swapped is not None:
        value = swapped
    elif whole is not None:
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
    """Set this rank's shard under ZeRO-3. DeepSpeed's setter fails for sizes that the number of ranks does not divide."""
    zero = parameter._z3_optimizer
    key, swapped = None if kind == "param" else kind, swapped_state.share(parameter, kind)
    part = swapped if swapped is not None else zero._get_fp32_opt_state_partition(parameter, False, key)[0]
    start = part.numel() * zero._get_param_partition_rank(parameter)
    mine = value.flatten()[start : start + part.numel()]
    part.zero_()  # the last shard is padded
    part[: mine.numel()].copy_(mine)
