"""A linear layer of the base in a pass of several members: each member's rows get the update of its own adapter.

The base's product is computed once for all rows. LoRA's update is added to it in place, member by member, in one autograd function
per layer: 2 products in the forward pass and 4 in the backward pass for each member, and no copy of the rows. Other variants, and
adapters in another data type than the rows, are computed by peft on the rows of their member.

Shapes: N tokens of the pass, n of a member; D features in, F features out, r the rank.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

ADAPTER = "default"
"""peft's name of a member's adapter in its own model."""


@dataclass
class Share:
    """What one member has in a pass."""

    begin: int
    """Its first token in the row."""
    end: int
    first_kept: int
    """Its first position among those whose logits are computed."""
    last_kept: int
    layers: dict[str, LoraLayer]
    """Its adapter, by the name of the layer."""
    random: torch.Generator | None
    """Its stream of random numbers; None if its adapter has no dropout."""


class Pass:
    """The shares of the members in a pass; the base's layers read them."""

    def __init__(self) -> None:
        self.shares: list[Share] = []
        self.recomputes = False
        """Whether activations are recomputed: dropout then draws the same numbers a second time."""
        self._states: dict[tuple[str, int], torch.Tensor] = {}

    def begin(self, shares: list[Share]) -> None:
        """Start a pass."""
        self.shares = shares
        self._states = {}

    def stream(self, name: str, number: int, share: Share) -> torch.Generator:
        """The generator for the dropout of a layer in the share with this number."""
        assert share.random is not None
        if not self.recomputes:
            return share.random
        known = self._states.get((name, number))
        if known is None:
            self._states[name, number] = share.random.get_state()
            return share.random
        again = torch.Generator(share.random.device)
        again.set_state(known)
        return again


def install(name: str, layer: torch.nn.Module, current: Pass) -> None:
    """Have a linear layer of the base add the updates of the members of the ``current`` pass."""
    base: Any = layer.forward

    def forward(x: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:  # x: (1, N, D)
        result: torch.Tensor = base(x, *rest, **named)  # (1, N, F)
        found = [(number, share) for number, share in enumerate(current.shares) if name in share.layers]
        if not found:
            return result
        kept = x.shape[1] != current.shares[-1].end  # the head may get those rows only whose logits are needed
        assert x.shape[:2] == (1, current.shares[-1].last_kept if kept else current.shares[-1].end), tuple(x.shape)
        parts = [
            _Part(
                share.layers[name],
                share.first_kept if kept else share.begin,
                share.last_kept if kept else share.end,
                None if share.random is None else current.stream(name, number, share),
            )
            for number, share in found
        ]
        return _updated(result, x, parts)

    layer.forward = forward


@dataclass
class _Part:
    """The rows of a member in a layer, and its adapter there."""

    layer: Any
    begin: int
    end: int
    random: torch.Generator | None

    @property
    def dropout(self) -> float:
        """The probability of dropping a feature."""
        module = self.layer.lora_dropout[ADAPTER]
        return float(module.p) if isinstance(module, torch.nn.Dropout) else 0.0


def _updated(result: torch.Tensor, x: torch.Tensor, parts: list[_Part]) -> torch.Tensor:
    """``result`` (1, N, F) of the base with the updates for the rows ``x`` (1, N, D)."""
    plain: list[_Part] = []
    others: list[_Part] = []
    for part in parts:
        weight = part.layer.lora_A[ADAPTER].weight
        same = weight.dtype == x.dtype == result.dtype
        (plain if same and ADAPTER not in part.layer.lora_variant else others).append(part)
    if others:
        result = _by_peft(result, x, others)
    if plain:
        weights = [part.layer.lora_A[ADAPTER].weight for part in plain]
        weights += [part.layer.lora_B[ADAPTER].weight for part in plain]
        result = _Update.apply(result, x, plain, *weights)  # type: ignore[no-untyped-call]
    return result


class _Update(torch.autograd.Function):
    """LoRA's updates of several members, added to the base's result in place."""

    @staticmethod
    def forward(
        ctx: Any, result: torch.Tensor, x: torch.Tensor, parts: list[_Part], *weights: torch.Tensor
    ) -> torch.Tensor:
        downs, ups = weights[: len(parts)], weights[len(parts) :]
        low, masks = [], []
        for part, down, up in zip(parts, downs, ups, strict=True):
            rows, mask = x[0, part.begin : part.end], _mask(x[0, part.begin : part.end], part)  # (n, D)
            low.append((rows if mask is None else rows * mask) @ down.T)  # (n, r)
            masks.append(mask)
            result[0, part.begin : part.end].addmm_(low[-1], up.T, alpha=part.layer.scaling[ADAPTER])
        ctx.parts, ctx.low, ctx.masks = parts, low, masks
        ctx.save_for_backward(x, *weights)
        ctx.mark_dirty(result)
        return result

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:  # (1, N, F)
        x, *weights = ctx.saved_tensors
        downs, ups = weights[: len(ctx.parts)], weights[len(ctx.parts) :]
        wanted = torch.zeros_like(x) if ctx.needs_input_grad[1] else None  # (1, N, D)
        of_downs, of_ups = [], []
        for part, low, mask, down, up in zip(ctx.parts, ctx.low, ctx.masks, downs, ups, strict=True):
            rows, scaling = slice(part.begin, part.end), part.layer.scaling[ADAPTER]
            of_ups.append(torch.mm(upstream[0, rows].T, low).mul_(scaling))  # (F, r)
            of_low = torch.mm(upstream[0, rows], up).mul_(scaling)  # (n, r)
            inputs = x[0, rows] if mask is None else x[0, rows] * mask
            of_downs.append(torch.mm(of_low.T, inputs))  # (r, D)
            if wanted is not None:
                torch.mm(of_low, down, out=wanted[0, rows])
                if mask is not None:
                    wanted[0, rows] *= mask
        return (upstream, wanted, None, *of_downs, *of_ups)


def _mask(rows: torch.Tensor, part: _Part) -> torch.Tensor | None:
    """What dropout multiplies a member's rows (n, D) by, drawn as torch's dropout draws it; None without dropout."""
    kept = 1 - part.dropout
    if kept == 1:
        return None
    if rows.device.type == "cpu":
        return torch.empty_like(rows).bernoulli_(kept, generator=part.random).div_(kept)
    with _drawing_from(part.random):  # torch's kernel for GPUs takes no generator
        return torch.native_dropout(rows, part.dropout, True)[1].to(rows.dtype).div_(kept)


def _by_peft(result: torch.Tensor, x: torch.Tensor, parts: list[_Part]) -> torch.Tensor:
    """The same by peft's own code, for the rows of each member."""
    pieces, done = [], 0
    for part in parts:
        rows = slice(part.begin, part.end)
        pieces += [result[:, done : part.begin], _of_member(part, x[:, rows], result[:, rows])]
        done = part.end
    return torch.cat([*pieces, result[:, done:]], dim=1)


def _of_member(part: _Part, x: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """What peft's layer returns for the rows ``x`` (1, n, D) whose base result is ``result`` (1, n, F)."""
    layer, down, up = part.layer, part.layer.lora_A[ADAPTER], part.layer.lora_B[ADAPTER]
    x = x.to(down.weight.dtype)
    with _drawing_from(part.random):
        if ADAPTER in layer.lora_variant:
            made = layer.lora_variant[ADAPTER].forward(layer, active_adapter=ADAPTER, x=x, result=result)
        else:
            made = result + up(down(layer.lora_dropout[ADAPTER](x))) * layer.scaling[ADAPTER]
    return made.to(result.dtype)  # type: ignore[no-any-return]


class _drawing_from:
    """While the block runs, torch's own generator continues a member's stream."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator

    def __enter__(self) -> None:
        if self.generator is not None:
            self.own = _default(self.generator.device)
            self.before = self.own.get_state()
            self.own.set_state(self.generator.get_state())

    def __exit__(self, *_: object) -> None:
        if self.generator is not None:
            self.generator.set_state(self.own.get_state())
            self.own.set_state(self.before)


def _default(device: torch.device) -> torch.Generator:
    return torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index or 0]
