"""Memory of a pack: several runs in one process that share the frozen base. No torch.

The base and the libraries are there once. Each member has its own adapter, gradients and optimizer state, and
all micro-batches are computed in one pass, so that their activations add up. Members are evaluated one at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from hydraft.config.schema import Config
from hydraft.plan.memory import DRIVER, HEAP, SLACK, memory
from hydraft.plan.memory_parts import Parts
from hydraft.plan.model_size import ModelSize
from hydraft.plan.parameters import trained_in
from hydraft.plan.plan import known_layout


@dataclass(frozen=True)
class PackMemory:
    """Bytes on the GPU, or in main memory for a run on a CPU."""

    base: int
    """Shared: frozen weights, and what the process itself takes."""
    loading: int
    """While the base is loaded, before there is a second member."""
    states: int
    """Of each member: adapter, gradients and optimizer state."""
    batch: int
    """Of each member: activations, logits and buffers of its micro-batch."""
    scoring: int
    """Of one member at a time: evaluation, beyond base and states."""
    slack: float = 0.0
    """Fragmentation of the allocator, as a share of the rest."""

    def of(self, members: int) -> int:
        """Bytes of a pack with so many members."""
        held = self.base + members * self.states
        whole = held + max(members * self.batch, self.scoring)
        return max(self.loading, round(whole * (1 + self.slack)) + (DRIVER if self.slack else 0))

    def members(self, available: int) -> int:
        """The most members that fit; at least one."""
        free = (available - (DRIVER if self.slack else 0)) / (1 + self.slack) - self.base
        by_batch = free / max(1, self.states + self.batch)
        by_scoring = (free - self.scoring) / max(1, self.states)
        return max(1, int(min(by_batch, by_scoring)))


def largest(memories: Sequence[PackMemory]) -> PackMemory:
    """A pack whose every part is the largest of ``memories``."""
    names = [declared.name for declared in fields(PackMemory)]
    return PackMemory(**{name: max(getattr(one, name) for one in memories) for name in names})


def pack_memory(config: Config, labelled: int, on_gpu: bool) -> PackMemory | None:
    """The memory of a pack of runs like that of a resolved ``config``; None for an architecture without a ``Family``.

    Args:
        config: one of the runs.
        labelled: the most trained tokens of a record.
        on_gpu: whether it runs on a GPU.
    """
    known, stored = known_layout(config)
    if known is None:
        return None
    whole = replace(config, zero=replace(config.zero, stage=0))  # nothing is sharded, and there are no buffers for it
    cost = memory(whole, ModelSize(known, trained_in(known, config), labelled, stored), on_gpu)
    if on_gpu:
        return _shared(cost.training, cost.scoring, cost.loading.total, SLACK)
    heap = round(HEAP * cost.host_training.activations)
    return _shared(cost.host_training, cost.host_scoring, cost.host_loading.total, 0.0, heap)


def _shared(training: Parts, scoring: Parts, loading: int, slack: float, heap: int = 0) -> PackMemory:
    """``heap``: freed activations of a member that the C library keeps."""
    process = 0 if slack else training.overhead - heap
    states = training.adapter + training.gradients + training.optimizer
    base = training.weights + process
    batch = training.activations + training.logits + training.buffers + heap
    beyond = scoring.total - states - base - (scoring.overhead if slack else 0)
    return PackMemory(base, loading, states, batch, max(0, beyond), slack)
