"""Muon for hidden matrices and AdamW for the other tensors, in one optimizer that ZeRO can shard.

Muon: https://kellerjordan.github.io/posts/muon/, with the scale of arXiv:2502.16982, section 2.2, which gives an update the root mean
square of AdamW's: both parts have one learning rate. A matrix's momentum is a number for each element, and is kept for the flat shard of
a rank as Adam's moments are. Its update needs the whole matrix: the ranks sum their pieces of it, one of them has torch's own Muon
orthogonalise it, and each takes its piece of the result. So gradients are clipped before, as with any other optimizer; DeepSpeed's Muon
(runtime/zero/muon) clips the updates instead.

With LoRA, the matrices are A (r, D) and B (F, r), each by itself: every singular value of A's update, and of B's, is about the same, but
not those of the update of B·A. A's gradient is 0 in the first step, in which B is 0, and so is its update.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from hydraft.config.optimizer import BUCKET


@dataclass(frozen=True)
class Piece:
    """The part of a matrix that this rank's flat shard has."""

    shape: torch.Size
    at: int
    """Where it begins in the shard."""
    start: int
    """Where it begins in the matrix."""
    count: int
    """Its elements; 0 if another rank has all of them."""


class Muon(torch.optim.AdamW):
    """Steps the groups with ``muon`` true as Muon does, and the others with AdamW."""

    def __init__(
        self, groups: list[dict[str, Any]], rate: float, betas: tuple[float, float], eps: float, momentum: float
    ) -> None:
        """``momentum``: of the matrices; ``betas`` and ``eps`` are for the other tensors."""
        super().__init__(groups, lr=rate, betas=betas, eps=eps, fused=True)
        self.momentum = momentum
        self.pieces: dict[torch.Tensor, list[Piece]] = {}
        """Of each shard of matrices, in their order, which is that of every rank. A tensor that is not here is a whole matrix."""

    def shard(self, engine: Any) -> None:
        """Find the matrices in DeepSpeed's shards, before the first step. Stage 0 has none."""
        zero = engine.optimizer
        if hasattr(zero, "fp32_partitioned_groups_flat"):
            found = _of_stage3(zero)
        elif hasattr(zero, "single_partition_of_fp32_groups"):
            found = _of_stages12(zero)
        else:
            return
        self.pieces = {flat: pieces for group, flat, pieces in found if self.param_groups[group]["muon"]}

    def init_state(self, tensor: torch.Tensor) -> None:
        """Create the state of a tensor that has none: of matrices one moment, of others those of AdamW."""
        state = self.state[tensor]
        whole = any(tensor is one for group in self.param_groups if group["muon"] for one in group["params"])
        names = ("momentum_buffer",) if tensor in self.pieces or whole else ("exp_avg", "exp_avg_sq")
        state["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device)  # the fused kernel reads it there
        for name in names:
            state[name] = torch.zeros_like(tensor.detach())

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of every group that has parameters now: ZeRO-3 steps one shard at a time."""
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._step_matrices(group)
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups

    def _step_matrices(self, group: dict[str, Any]) -> None:
        for tensor in group["params"]:
            if tensor.grad is None:
                continue
            if not self.state[tensor]:
                self.init_state(tensor)
            state, gradient = self.state[tensor], tensor.grad.to(tensor.dtype)
            state["step"] += 1
            momentum = state["momentum_buffer"].lerp_(gradient, 1 - self.momentum)
            update = gradient.lerp(momentum, self.momentum)
            tensor.mul_(1 - group["lr"] * group["weight_decay"])
            if tensor not in self.pieces:
                tensor.add_(orthogonalised(update), alpha=-group["lr"])
                continue
            flat_tensor, flat_update = tensor.view(-1), update.view(-1)
            for piece, part in _orthogonalised(flat_update, self.pieces[tensor]):
                flat_tensor[piece.at : piece.at + piece.count].add_(part.to(tensor.device), alpha=-group["lr"])


def orthogonalised(update: torch.Tensor) -> torch.Tensor:
    """The update of a matrix (A, B) at a learning rate of 1: torch.optim.Muon steps from 0 with it as its gradient."""
    result = torch.nn.Parameter(torch.zeros_like(update))
    result.grad = update
    torch.optim.Muon(
        [result], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False, adjust_lr_fn="match_rms_adamw"
    ).step()
    return result.detach().neg_()


def _orthogonalised(update: torch.Tensor, pieces: list[Piece]) -> Iterator[tuple[Piece, torch.Tensor]]:
    """The pieces of a shard with their updates (count,); every rank must take part."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else update.device
    for bucket in _buckets(pieces):
        whole = torch.zeros(sum(piece.shape.numel() for piece in bucket), dtype=update.dtype, device=device)
        places = whole.split([piece.shape.numel() for piece in bucket])
        for piece, place in zip(bucket, places, strict=True):
            place[piece.start : piece.start + piece.count].copy_(update[piece.at : piece.at + piece.count])
        _sum(whole)
        for number, (piece, place) in enumerate(zip(bucket, places, strict=True)):
            if number % dist.get_world_size() == dist.get_rank():
                place.copy_(orthogonalised(place.view(piece.shape)).view(-1))
            else:
                place.zero_()
        _sum(whole)
        for piece, place in zip(bucket, places, strict=True):
            yield piece, place[piece.start : piece.start + piece.count]


def _sum(whole: torch.Tensor) -> None:
    """Over the ranks, of which one has each element and the others 0: no bit changes."""
    if dist.get_world_size() > 1:
        dist.all_reduce(whole)


def _buckets(pieces: list[Piece]) -> Iterator[list[Piece]]:
    bucket: list[Piece] = []
    for piece in pieces:
        if bucket and sum(one.shape.numel() for one in bucket) + piece.shape.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(piece)
    if bucket:
        yield bucket


def _of_stages12(zero: Any) -> Iterator[tuple[int, torch.Tensor, list[Piece]]]:
    """Of each group: its number, this rank's shard, and the pieces of its tensors."""
    for group, flat in enumerate(zero.single_partition_of_fp32_groups):
        pieces = []
        for parameter in zero.round_robin_bit16_groups[group]:
            mapping = parameter._hp_mapping
            if mapping is None:
                pieces.append(Piece(parameter.shape, 0, 0, 0))
                continue
            own, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
            pieces.append(Piece(parameter.shape, own.start, whole.start, own.numel))
        yield group, flat, pieces


def _of_stage3(zero: Any) -> Iterator[tuple[int, torch.Tensor, list[Piece]]]:
    """Of each subgroup: the number of its group, this rank's shard, and the pieces of its tensors; the last rank's are padded."""
    for number, flat in enumerate(zero.fp32_partitioned_groups_flat):
        pieces, at = [], 0
        for parameter in zero.fp16_groups[number]:
            size = parameter.partition_numel()
            start = min(size * zero._get_param_partition_rank(parameter), parameter.ds_numel)
            pieces.append(Piece(parameter.ds_shape, at, start, min(size, parameter.ds_numel - start)))
            at += size
        yield zero.sub_group_to_group_id[number], flat, pieces
