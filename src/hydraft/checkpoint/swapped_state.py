"""Adam's state that ZeRO-3 keeps on a disk (``zero.offload_optimizer=nvme``), read and written a sub-group of parameters at a time.

DeepSpeed's own getters and setters read a whole sub-group from the disk for each tensor of each parameter; here it stays in memory until
a parameter of another one is asked for, or ``released`` ends.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def in_memory(zero: Any, number: int) -> Iterator[None]:
    """Sub-group ``number`` in memory for the length of the block, after which it is written to the disk."""
    if not _is_swapped(zero, number):
        yield
        return
    zero._optimizer_states_and_gradient_swap_in(number)
    yield
    zero._optimizer_states_and_gradient_swap_out(number)


def gathered(parameter: Any, kind: str) -> torch.Tensor | None:
    """The whole tensor; None if it is not on a disk. Every rank must call it."""
    found = _share(parameter, kind, changes=False)
    if found is None:
        return None
    whole: torch.Tensor = parameter._z3_optimizer._fp32_state_allgather(parameter, found)
    return whole.clone()


def share(parameter: Any, kind: str) -> torch.Tensor | None:
    """This rank's share, to write to before the next call; None if it is not on a disk."""
    return _share(parameter, kind, changes=True)


def released(method: Callable[P, R]) -> Callable[P, R]:
    """``method(engine, …)``, after which no sub-group is in memory, and what was changed is on the disk."""

    @wraps(method)
    def wrapped(*args: P.args, **named: P.kwargs) -> R:
        result = method(*args, **named)
        engine: Any = args[0]
        _release(engine.optimizer)
        return result

    return wrapped


def _is_swapped(zero: Any, number: int) -> bool:
    """Whether sub-group ``number`` of a ZeRO optimizer is on a disk between steps; small ones are not."""
    return bool(getattr(zero, "swap_optimizer", False)) and bool(zero._swappable_optimizer_subgroup(number))


def _share(parameter: Any, kind: str, changes: bool) -> torch.Tensor | None:
    zero = getattr(parameter, "_z3_optimizer", None)
    if not getattr(zero, "swap_optimizer", False):
        return None
    assert zero is not None
    number, start, length = map(int, zero.grad_position[zero.get_param_id(parameter)])
    if not _is_swapped(zero, number):
        return None
    known, changed = _held.get(id(zero), (None, False))
    if number != known:
        _release(zero)
        zero._optimizer_states_and_gradient_swap_in(number)
        changed = False
    _held[id(zero)] = number, changed or changes
    flat = zero.fp32_partitioned_groups_flat[number]
    tensor: torch.Tensor = flat if kind == "param" else zero.optimizer.state[flat][kind]
    return tensor.detach().narrow(0, start, length)


def _release(zero: Any) -> None:
    number, changed = _held.pop(id(zero), (None, False))
    if number is None:
        return
    if changed:
        zero._optimizer_states_and_gradient_swap_out(number)
    else:
        zero._release_swap_buffers(number)


_held: dict[int, tuple[int | None, bool]] = {}
"""By ZeRO optimizer: the sub-group that is in memory, and whether it was changed."""
