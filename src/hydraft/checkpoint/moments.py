"""The state of each kind of optimizer, as whole or flat fp32 tensors with the names that a checkpoint gives them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hydraft.config.optimizer import BLOCK

SAVED = {"state1": "exp_avg", "state2": "exp_avg_sq"}
"""By bitsandbytes' name of a moment, the one in a checkpoint, which is torch's; others have theirs."""

COUNTS = ("step", "qmap1", "qmap2", "absmax1", "absmax2")
"""What is no moment: the step count, and how 8-bit moments are quantised."""

SHARDS = (
    ("fp32_partitioned_groups_flat", "fp16_groups"),
    ("single_partition_of_fp32_groups", "bit16_groups"),
    ("fp32_groups_flat_partition", "bf16_groups"),
)
"""Of DeepSpeed's optimizers: this rank's flat shard of each group (in ZeRO-3: subgroup), and the parameters in it."""

CHUNK = BLOCK * 2**16
"""Elements that are quantised at once."""

State = dict[str, Any]


def shards(engine: Any) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    """The tensors that this rank's optimizer steps, and the parameters of each; without sharding these are the same."""
    zero = engine.optimizer
    for flat, groups in SHARDS:
        if hasattr(zero, flat):
            return list(getattr(zero, flat)), [list(group) for group in getattr(zero, groups)]
    stepped = [parameter for group in engine.basic_optimizer.param_groups for parameter in group["params"]]
    return stepped, [[parameter] for parameter in stepped]


def create(optimizer: Any, tensor: torch.Tensor) -> State:
    """The state of a tensor; before its first step, as the optimizer creates it."""
    state: State = optimizer.state[tensor]
    if state:
        return state
    name = type(optimizer).__name__
    group = optimizer.param_groups[0]
    if name == "Muon":
        optimizer.init_state(tensor)
    elif name in ("AdamW8bit", "Lion32bit"):
        before, group["params"] = group["params"], [tensor]  # it looks there; ZeRO-3 leaves groups empty between steps
        optimizer.init_state(group, tensor, 0, 0)
        group["params"] = before
    elif name == "Adafactor":
        _init_adafactor(state, tensor)
    else:
        counts_on = tensor.device if group.get("fused") else "cpu"  # the fused kernel reads the count
        on_host = name == "DeepSpeedCPUAdam"
        state["step"] = 0 if on_host else torch.zeros((), dtype=torch.float32, device=counts_on)
        for kind in ("exp_avg", "exp_avg_sq"):
            state[kind] = torch.zeros_like(tensor.detach())
    return state


def _init_adafactor(state: State, tensor: torch.Tensor) -> None:
    """As torch/optim/_adafactor.py, ``_init_group``."""
    state["step"] = torch.zeros((), dtype=torch.float32)
    if tensor.dim() < 2:
        state["variance"] = torch.zeros_like(tensor.detach())
        return
    rows, columns = list(tensor.shape), list(tensor.shape)
    rows[-1] = columns[-2] = 1
    state["row_var"], state["col_var"] = tensor.detach().new_zeros(rows), tensor.detach().new_zeros(columns)


def names(state: State) -> list[str]:
    """The names that a checkpoint gives the moments in a state."""
    return [SAVED.get(key, key) for key in state if key not in COUNTS]


@contextmanager
def plain(optimizer: Any, tensors: list[torch.Tensor], write: bool) -> Iterator[None]:
    """Within the block, bitsandbytes' states have fp32 moments with the names of a checkpoint.

    Args:
        optimizer: whose states they are.
        tensors: those that it steps.
        write: whether the moments of the block become those of the optimizer.
    """
    kept = {tensor: optimizer.state[tensor] for tensor in tensors if "state1" in optimizer.state[tensor]}
    for tensor, state in kept.items():
        optimizer.state[tensor] = {SAVED.get(key, key): _wide(state, key) for key in state if key not in COUNTS}
        optimizer.state[tensor]["step"] = state["step"]
    try:
        yield
        if write:
            for tensor, state in kept.items():
                for key in [key for key in state if key in SAVED]:
                    _put(state, key, optimizer.state[tensor][SAVED[key]])
    finally:
        for tensor, state in kept.items():
            state["step"] = optimizer.state[tensor]["step"]
            optimizer.state[tensor] = state


def _wide(state: State, key: str) -> torch.Tensor:
    value: torch.Tensor = state[key]
    if value.dtype != torch.uint8:
        return value
    from bitsandbytes.functional import dequantize_blockwise

    number = key.removeprefix("state")
    wide: torch.Tensor = dequantize_blockwise(
        value, absmax=state[f"absmax{number}"], code=state[f"qmap{number}"], blocksize=BLOCK
    )
    return wide


def _put(state: State, key: str, value: torch.Tensor) -> None:
    if state[key].dtype != torch.uint8:
        state[key].copy_(value)
        return
    number = key.removeprefix("state")
    scales, codes = state[f"absmax{number}"], state[key]
    for start in range(0, value.numel(), CHUNK):
        end = min(start + CHUNK, value.numel())
        blocks = slice(start // BLOCK, -(-end // BLOCK))
        codes[start:end], scales[blocks] = quantised(value[start:end], state[f"qmap{number}"])


def quantised(value: torch.Tensor, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes (n,) of values (n,) and the scales of their blocks, so that what bitsandbytes has dequantised gets the same ones again.

    The most negative code of a signed table is above -1, and the scale of a block whose largest value has it is larger accordingly:
    ``quantize_blockwise`` would scale such a block by less each time that a checkpoint is resumed. The quotient is that scale but for
    its last bits, and of the scales next to it, the one is taken that gives every value of the block again.
    """
    blocks = torch.nn.functional.pad(value, (0, -len(value) % BLOCK)).view(-1, BLOCK)  # (blocks, BLOCK)
    scale = blocks.amax(1) / table[-1]
    if table[0] < 0:
        scale = torch.maximum(scale, blocks.amin(1) / table[0])
    ratio = blocks / torch.where(scale > 0, scale, 1.0)[:, None]
    codes = torch.bucketize(ratio, (table[1:] + table[:-1]) / 2, out_int32=True)
    units, found = table[codes], scale.clone()
    for candidate in _near(scale):
        exact = (units * candidate[:, None] == blocks).all(1)
        found = torch.where(exact, candidate, found)
    return codes.to(torch.uint8).view(-1)[: len(value)], found


def _near(scale: torch.Tensor) -> Iterator[torch.Tensor]:
    """The numbers up to two steps below and above each scale, and the scale itself last."""
    for end in (0.0, torch.inf):
        once = torch.nextafter(scale, torch.full_like(scale, end))
        yield torch.nextafter(once, torch.full_like(scale, end))
        yield once
    yield scale
