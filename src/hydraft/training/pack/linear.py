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

    tokens: int
    """In the row, behind those of the shares before it."""
    kept: int
    """Positions whose logits are computed."""
    layers: dict[str, LoraLayer]
    """Its adapter, by the name of the layer."""
    random: torch.Generator | None
    """Its stream of random numbers; None if its adapter has no dropout."""


@dataclass
class _Adapter:
    """A member's adapter on one layer."""

    number: int
    """Of its share in the pass."""
    layer: Any
    down: torch.nn.Parameter  # (r, D)
    up: torch.nn.Parameter  # (F, r)
    scaling: float
    dropout: float
    """The probability of dropping a feature."""
    plain: bool
    """Whether its update is an addition to the base's result."""

    @classmethod
    def of(cls, number: int, layer: Any) -> "_Adapter":
        """That of peft's ``layer``."""
        dropout = layer.lora_dropout[ADAPTER]
        return cls(
            number,
            layer,
            layer.lora_A[ADAPTER].weight,
            layer.lora_B[ADAPTER].weight,
            float(layer.scaling[ADAPTER]),
            float(dropout.p) if isinstance(dropout, torch.nn.Dropout) else 0.0,
            ADAPTER not in layer.lora_variant,
        )


class Pass:
    """The shares of the members in a pass; the base's layers read them."""

    def __init__(self) -> None:
        self.shares: list[Share] = []
        self.recomputes = False
        """Whether activations are recomputed: dropout then draws the same numbers a second time."""
        self.tokens: list[int] = []
        """Of each share."""
        self.kept: list[int] = []
        """Positions of each share whose logits are computed."""
        self._states: dict[tuple[str, int], torch.Tensor] = {}
        self._members: list[dict[str, LoraLayer]] = []
        self._found: dict[str, list[_Adapter]] = {}

    def begin(self, shares: list[Share]) -> None:
        """Start a pass; without shares, end it."""
        self.shares, self._states = shares, {}
        self.tokens = [share.tokens for share in shares]
        self.kept = [share.kept for share in shares]
        members = [share.layers for share in shares]
        if shares and (len(members) != len(self._members) or any(map(_differ, members, self._members))):
            self._members, self._found = members, {}

    def adapters(self, name: str) -> list[_Adapter]:
        """The members' adapters on a layer; kept for passes with the same members."""
        found = self._found.get(name)
        if found is None:
            numbered = enumerate(share.layers.get(name) for share in self.shares)
            found = self._found[name] = [_Adapter.of(number, layer) for number, layer in numbered if layer is not None]
        return found

    def stream(self, name: str, number: int) -> torch.Generator | None:
        """The generator for the dropout of a layer in the share with this number; None without dropout."""
        random = self.shares[number].random
        if random is None or not self.recomputes:
            return random
        known = self._states.get((name, number))
        if known is None:
            self._states[name, number] = random.get_state()
            return random
        again = torch.Generator(random.device)
        again.set_state(known)
        return again


def _differ(one: object, other: object) -> bool:
    return one is not other


def install(name: str, layer: torch.nn.Module, current: Pass) -> None:
    """Have a linear layer of the base add the updates of the members of the ``current`` pass."""
    base: Any = layer.forward

    def forward(x: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:  # x: (1, N, D)
        result: torch.Tensor = base(x, *rest, **named)  # (1, N, F)
        adapters = current.adapters(name) if current.shares else []
        if not adapters:
            return result
        total = sum(current.tokens)
        sizes = current.tokens if x.shape[1] == total else current.kept  # the head may get the kept rows only
        assert x.shape[:2] == (1, sum(sizes)), tuple(x.shape)
        streams = [current.stream(name, adapter.number) if adapter.dropout else None for adapter in adapters]
        return _updated(result, x, sizes, list(zip(adapters, streams, strict=True)))

    layer.forward = forward


Drawn = tuple[_Adapter, torch.Generator | None]
"""An adapter, and what its dropout draws from."""


def _updated(result: torch.Tensor, x: torch.Tensor, sizes: list[int], drawn: list[Drawn]) -> torch.Tensor:
    """``result`` (1, N, F) of the base with the updates for the rows ``x`` (1, N, D), of which each member has ``sizes``."""
    plain: list[Drawn] = []
    others: list[Drawn] = []
    for one in drawn:
        same = one[0].plain and one[0].down.dtype == x.dtype == result.dtype
        (plain if same else others).append(one)
    if others:
        result = _by_peft(result, x, sizes, others)
    if plain:
        weights = [adapter.down for adapter, _ in plain] + [adapter.up for adapter, _ in plain]
        result = _Update.apply(result, x, sizes, plain, *weights)  # type: ignore[no-untyped-call]
    return result


class _Update(torch.autograd.Function):
    """LoRA's updates of several members, added to the base's result in place."""

    @staticmethod
    def forward(
        ctx: Any, result: torch.Tensor, x: torch.Tensor, sizes: list[int], drawn: list[Drawn], *weights: torch.Tensor
    ) -> torch.Tensor:
        inputs, outputs = x[0].split(sizes), result[0].split(sizes)  # (n, D), (n, F) of each member
        low, masks = [], []
        for adapter, stream in drawn:
            rows = inputs[adapter.number]
            mask = _mask(rows, adapter.dropout, stream) if adapter.dropout else None
            low.append(torch.mm(rows if mask is None else rows * mask, adapter.down.t()))  # (n, r)
            masks.append(mask)
            outputs[adapter.number].addmm_(low[-1], adapter.up.t(), alpha=adapter.scaling)
        ctx.sizes, ctx.adapters, ctx.low, ctx.masks = sizes, [adapter for adapter, _ in drawn], low, masks
        ctx.save_for_backward(x, *weights)
        ctx.mark_dirty(result)
        return result

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:  # (1, N, F)
        x, *weights = ctx.saved_tensors
        count = len(ctx.adapters)
        inputs, above = x[0].split(ctx.sizes), upstream[0].split(ctx.sizes)
        wanted, below = None, None
        if ctx.needs_input_grad[1]:
            wanted = torch.empty_like(x) if count == len(ctx.sizes) else torch.zeros_like(x)  # (1, N, D)
            below = wanted[0].split(ctx.sizes)
        of_downs, of_ups = [], []
        for index, (adapter, low, mask) in enumerate(zip(ctx.adapters, ctx.low, ctx.masks, strict=True)):
            down, up, number = weights[index], weights[count + index], adapter.number
            of_ups.append(torch.mm(above[number].t(), low).mul_(adapter.scaling))  # (F, r)
            of_low = torch.mm(above[number], up).mul_(adapter.scaling)  # (n, r)
            rows = inputs[number] if mask is None else inputs[number] * mask
            of_downs.append(torch.mm(of_low.t(), rows))  # (r, D)
            if below is not None:
                torch.mm(of_low, down, out=below[number])
                if mask is not None:
                    below[number].mul_(mask)
        return (upstream, wanted, None, None, *of_downs, *of_ups)


def _mask(rows: torch.Tensor, dropout: float, stream: torch.Generator | None) -> torch.Tensor:
    """What dropout multiplies a member's rows (n, D) by, drawn as torch's dropout draws it."""
    if rows.device.type == "cpu":
        return torch.empty_like(rows).bernoulli_(1 - dropout, generator=stream).div_(1 - dropout)
    with _drawing_from(stream):  # torch's kernel for GPUs takes no generator
        return torch.native_dropout(rows, dropout, True)[1].to(rows.dtype).div_(1 - dropout)


def _by_peft(result: torch.Tensor, x: torch.Tensor, sizes: list[int], drawn: list[Drawn]) -> torch.Tensor:
    """The same by peft's own code, for the rows of each member."""
    pieces, inputs = list(result.split(sizes, dim=1)), x.split(sizes, dim=1)
    for adapter, stream in drawn:
        pieces[adapter.number] = _of_member(adapter, inputs[adapter.number], pieces[adapter.number], stream)
    return torch.cat(pieces, dim=1)


def _of_member(
    adapter: _Adapter, x: torch.Tensor, result: torch.Tensor, stream: torch.Generator | None
) -> torch.Tensor:
    """What peft's layer returns for the rows ``x`` (1, n, D) whose base result is ``result`` (1, n, F)."""
    layer, down, up = adapter.layer, adapter.layer.lora_A[ADAPTER], adapter.layer.lora_B[ADAPTER]
    x = x.to(down.weight.dtype)
    with _drawing_from(stream):
        if adapter.plain:
            made = result + up(down(layer.lora_dropout[ADAPTER](x))) * adapter.scaling
        else:
            made = layer.lora_variant[ADAPTER].forward(layer, active_adapter=ADAPTER, x=x, result=result)
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
