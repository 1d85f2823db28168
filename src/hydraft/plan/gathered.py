"""Simulates which sharded weights ZeRO-3 has gathered at once in a training step, and how many it gathers. No torch.

As DeepSpeed 0.19.8 does from the third micro-batch on, when it knows the order of the modules
(runtime/zero/partitioned_param_coordinator.py): before a module runs, it gathers the module's weights, and prefetches the next ones, a
bucket at each module, up to a limit for all; after it, the weights are freed unless they are used again soon.
``tests/integration/plan/test_gathered.py`` compares this with DeepSpeed.
"""

import dataclasses
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from hydraft.config.choices import Offload, QuantKind
from hydraft.config.schema import Config
from hydraft.plan.parameters import HEAD, Layout, Trained
from hydraft.plan.weights import sharded_bytes, storage_width

MOST = 1_000_000_000
"""DeepSpeed's limits of live weights and of the distance between two uses: in elements, and meant for 16-bit weights."""

IDLE = ("layer", "attention", "feed-forward block", "activation function")
"""Modules of a decoder layer without weights of their own: more are prefetched at them too."""


@dataclass(frozen=True)
class Limits:
    """DeepSpeed's limits, in elements."""

    persistent: int
    """Weights of up to this size are not sharded."""
    prefetch: int
    live: int
    reuse: int


@dataclass
class Gathered:
    """Elements of gathered weights: the most in memory at each moment of a step, and the sum."""

    start: int = 0
    """From the embedding to the first layer."""
    layers: int = 0
    """In the other layers, forward or backward."""
    head: int = 0
    """At the head and the loss."""
    end: int = 0
    """From the first layer to the embedding, in the backward pass."""
    total: int = 0
    """All that are gathered in a micro-batch, each time that they are."""

    def times(self, width: int) -> "Gathered":
        """In bytes, for elements of ``width`` bytes."""
        return Gathered(*(width * count for count in dataclasses.astuple(self)))


@dataclass(frozen=True)
class _Step:
    """A module that runs, forward or backward."""

    moment: str
    """The field of ``Gathered`` that it counts for."""
    weights: tuple[int, ...]
    """Numbers of its parameters."""
    recomputed: tuple["_Step", ...] = ()
    """The modules of a layer, which run again within its first step backward."""


def limits(config: Config) -> Limits:
    """The limits that a resolved ``config`` gives to DeepSpeed.

    An element in 16 bits holds four 4-bit weights, so that they are for as many weights as without quantisation. And 4-bit weights are
    prefetched one at a time: several would be gathered into one buffer and copied, the embedding or the head among them, which are the
    largest by far, and would be in memory twice.
    """
    zero, quantised = config.zero, config.quant.kind is not QuantKind.none
    most = MOST // (2 * storage_width(config)) if quantised else MOST
    prefetch = min(1, zero.stage3_prefetch_bucket_size) if quantised else zero.stage3_prefetch_bucket_size
    # A weight that stays gathered keeps the buffer that it was read from the disk to, of which there are few.
    reuse = 0 if zero.offload_param is Offload.nvme else most
    return Limits(zero.stage3_param_persistence_threshold, prefetch, most, reuse)


def gathered(config: Config, layout: Layout, learns: Trained) -> Gathered:
    """The gathered weights of a micro-batch of a resolved ``config`` at stage 3."""
    return simulated(config, layout, learns, limits(config))


def simulated(config: Config, layout: Layout, learns: Trained, limits: Limits, copies: bool = True) -> Gathered:
    """``gathered`` with other limits; ``copies``: whether to count the buffers too that several weights are copied from."""
    width = storage_width(config)  # sizes for one rank, since the padding for several is some bytes
    sizes = tuple(sharded_bytes(config, tensor, width, 1) // width for tensor in layout.tensors)
    return _simulated(layout, learns, sizes, config.train.recomputes, limits, copies)


@lru_cache(maxsize=64)
def _simulated(
    layout: Layout, learns: Trained, sizes: tuple[int, ...], recomputes: bool, limits: Limits, copies: bool
) -> Gathered:
    frozen = 0 if learns.full else len(sizes)  # the adapter's are behind them
    every, parts = _modules(layout, learns, sizes)
    order = list(_order(parts, recomputes, learns.full))
    return _Coordinator(every, frozen, limits, order, copies).run()


def _modules(
    layout: Layout, learns: Trained, sizes: tuple[int, ...]
) -> tuple[list[int], dict[str, list[tuple[int, ...]]]]:
    """Elements of every parameter, and the parameters of the modules of each part: embedding, layer, norm or head."""
    every, modules = list(sizes), dict[str, list[int]]()
    for number, tensor in enumerate(layout.tensors):
        modules.setdefault(tensor.module, []).append(number)
    modules.setdefault(HEAD, [0])  # tied
    adapters = dict[str, list[int]]()
    for number, target in enumerate(learns.targets):
        own = [
            size
            for each in (learns.adapter, learns.frozen)
            for size in each[
                number * len(each) // len(learns.targets) : (number + 1) * len(each) // len(learns.targets)
            ]
        ]
        adapters[target] = list(range(len(every), len(every) + len(own)))
        every += own
    parts: dict[str, list[tuple[int, ...]]] = {}
    for module, weights in modules.items():
        part = ".".join(module.split(".")[:3]) if module.startswith("model.layers.") else module
        adapter = adapters.get(module, [])
        steps = parts.setdefault(part, [()] * len(IDLE) if part != module else [])
        # peft's layer is a module around the layer, its dropout and its adapter.
        steps += [(), tuple(weights), (), *((number,) for number in adapter)] if adapter else [tuple(weights)]
    return every, parts


def _order(parts: dict[str, list[tuple[int, ...]]], recomputes: bool, full: bool) -> Iterator[_Step]:
    """The modules of a micro-batch, forward and backward."""
    embedding, first, *_ = parts
    for part, modules in parts.items():
        moment = {embedding: "start", first: "start", HEAD: "head"}.get(part, "layers")
        yield from (_Step(moment, weights) for weights in modules)
    for part in reversed(list(parts)):
        if part == embedding and not (recomputes or full):  # no gradient reaches it
            continue
        moment = {embedding: "end", first: "end", HEAD: "head"}.get(part, "layers")
        steps = [_Step(moment, weights) for weights in parts[part]]
        again = tuple(steps) if recomputes and part.startswith("model.layers.") else ()
        yield _Step(moment, steps[-1].weights, again)
        yield from reversed(steps[:-1])


@dataclass(eq=False)
class _Gather:
    """Weights that are gathered together: into one buffer, from which they are copied when the first of them is used."""

    left: set[int]
    """Those that have not been used."""
    size: int
    buffer: int = 0
    """Elements of the buffer while there are copies too."""


class _Coordinator:
    """DeepSpeed's PartitionedParameterCoordinator."""

    def __init__(self, sizes: list[int], frozen: int, limits: Limits, order: list[_Step], copies: bool) -> None:
        self.copies = copies
        self.sizes, self.frozen, self.limits, self.order = sizes, frozen, limits, order
        self.found = Gathered()
        self.available: set[int] = set()
        self.inflight: dict[int, _Gather] = {}
        self.live = self.buffers = 0
        """Elements of gathered weights, and of the buffers that they are copied from."""
        self.emptied = 0
        """Of these buffers, those that all have been copied from and used."""
        self.number = 0
        """Of the next step."""
        self.fetched = [-1] * len(sizes)
        """The last step that a weight has been fetched for."""
        self.queue: deque[tuple[int, int]] = deque()
        self.passed = [0]
        """Elements that are used before each step."""
        self.uses: dict[int, list[int]] = {}
        """The steps that use a weight."""
        every = (step for first in order for step in (first, *first.recomputed))
        for number, step in enumerate(every):
            self.passed.append(self.passed[-1] + sum(sizes[weight] for weight in step.weights))
            for weight in self._sharded(step):
                self.queue.append((weight, number))
                self.uses.setdefault(weight, []).append(number)

    def run(self) -> Gathered:
        """The gathered weights of a micro-batch."""
        for step in self.order:
            self._fetch(step)
            kept: set[int] = set()
            for inner in step.recomputed:
                self._fetch(inner)
                kept |= {weight for weight in self._sharded(inner) if weight < self.frozen}
                self._release(set(self._sharded(inner)) - kept - set(step.weights))
            self._release(set(self._sharded(step)) - kept)
            self._free(kept)  # what was recomputed within a module is freed with it, whether it is used again or not
        return self.found

    def _sharded(self, step: _Step) -> list[int]:
        return [weight for weight in step.weights if self.sizes[weight] > self.limits.persistent]

    def _fetch(self, step: _Step) -> None:
        if weights := self._sharded(step):
            self._use(step, weights)
        if self.queue and self.live < self.limits.live:
            self._prefetch(step)
        self.number += 1

    def _use(self, step: _Step, weights: list[int]) -> None:
        self._gather([weight for weight in weights if not self._is_here(weight)])
        for weight in weights:
            self._wait(weight)
        self._count(step)
        missing = {weight for weight in weights if self.fetched[weight] < self.number}
        while missing:
            weight, number = self.queue.popleft()
            self.fetched[weight] = number
            missing.discard(weight)

    def _prefetch(self, step: _Step) -> None:
        room, group, size = min(self.limits.live - self.live, self.limits.prefetch), list[int](), 0
        while self.queue and size < room:
            weight, number = self.queue.popleft()
            self.fetched[weight] = max(self.fetched[weight], number)
            if not self._is_here(weight) and weight not in group:
                group.append(weight)
                size += self.sizes[weight]
        self._gather(group)
        self._count(step)

    def _is_here(self, weight: int) -> bool:
        return weight in self.available or weight in self.inflight

    def _gather(self, group: list[int]) -> None:
        size = sum(self.sizes[weight] for weight in group)
        self.live += size
        self.found.total += size
        self.inflight |= dict.fromkeys(group, _Gather(set(group), size))

    def _wait(self, weight: int) -> None:
        gather = self.inflight.pop(weight, None)
        if gather is None:
            return
        if gather.size > self.sizes[weight] and not gather.buffer and self.copies:
            gather.buffer = gather.size
            self.buffers += gather.buffer
        self.available.add(weight)
        gather.left.discard(weight)
        self.emptied += 0 if gather.left else gather.buffer

    def _count(self, step: _Step) -> None:
        most = max(getattr(self.found, step.moment), self.live + self.buffers)
        setattr(self.found, step.moment, most)
        self.buffers -= self.emptied
        self.emptied = 0

    def _release(self, weights: set[int]) -> None:
        """Free weights that are not used again within the limit, and have not been passed over by the prefetch."""
        self._free({weight for weight in weights if not self._is_kept(weight)})

    def _is_kept(self, weight: int) -> bool:
        if self.fetched[weight] > self.number:
            return True
        uses = self.uses[weight]
        following = bisect_left(uses, self.number)
        return following < len(uses) and self.passed[uses[following]] - self.passed[self.number] < self.limits.reuse

    def _free(self, weights: set[int]) -> None:
        for weight in weights & self.available:
            self.available.discard(weight)
            self.live -= self.sizes[weight]
