"""A linear layer of the base in a pass of several members: each member's rows get the update of its own adapter.

The base's product is computed once for all rows. LoRA's updates are added to it in place, in one autograd function per layer
(``update.py``). Other variants, and adapters in another data type than the rows, are computed by peft on the rows of their member.

Shapes: N tokens of the pass, n of a member; D features in, F features out.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from hydraft.training.pack.adapter import ADAPTER, Adapter, Drawn
from hydraft.training.pack.dropout import drawing_from
from hydraft.training.pack.parts import Parts
from hydraft.training.pack.update import Update


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
        self._found: dict[str, list[Adapter]] = {}
        self.parts = Parts()

    def begin(self, shares: list[Share]) -> None:
        """Start a pass; without shares, end it."""
        self.shares, self._states, self.parts = shares, {}, Parts()
        self.tokens = [share.tokens for share in shares]
        self.kept = [share.kept for share in shares]
        members = [share.layers for share in shares]
        if shares and (len(members) != len(self._members) or any(map(_differ, members, self._members))):
            self._members, self._found = members, {}

    def adapters(self, name: str) -> list[Adapter]:
        """The members' adapters on a layer; kept for passes with the same members."""
        found = self._found.get(name)
        if found is None:
            numbered = enumerate(share.layers.get(name) for share in self.shares)
            found = self._found[name] = [Adapter.of(number, layer) for number, layer in numbered if layer is not None]
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
        return _updated(result, x, sizes, list(zip(adapters, streams, strict=True)), current.parts)

    layer.forward = forward


def _updated(result: torch.Tensor, x: torch.Tensor, sizes: list[int], drawn: list[Drawn], parts: Parts) -> torch.Tensor:
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
        found = parts.of([adapter for adapter, _ in plain], sizes, x)
        result = Update.apply(result, x, found, plain, *weights)  # type: ignore[no-untyped-call]
    return result


def _by_peft(result: torch.Tensor, x: torch.Tensor, sizes: list[int], drawn: list[Drawn]) -> torch.Tensor:
    """The same by peft's own code, for the rows of each member."""
    pieces, inputs = list(result.split(sizes, dim=1)), x.split(sizes, dim=1)
    for adapter, stream in drawn:
        pieces[adapter.number] = _of_member(adapter, inputs[adapter.number], pieces[adapter.number], stream)
    return torch.cat(pieces, dim=1)


def _of_member(adapter: Adapter, x: torch.Tensor, result: torch.Tensor, stream: torch.Generator | None) -> torch.Tensor:
    """What peft's layer returns for the rows ``x`` (1, n, D) whose base result is ``result`` (1, n, F)."""
    layer, down, up = adapter.layer, adapter.layer.lora_A[ADAPTER], adapter.layer.lora_B[ADAPTER]
    x = x.to(down.weight.dtype)
    with drawing_from(stream):
        if adapter.plain:
            made = result + up(down(layer.lora_dropout[ADAPTER](x))) * adapter.scaling
        else:
            made = layer.lora_variant[ADAPTER].forward(layer, active_adapter=ADAPTER, x=x, result=result)
    return made.to(result.dtype)  # type: ignore[no-any-return]
