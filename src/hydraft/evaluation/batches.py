"""How many records are evaluated at a time, and which of these batches a rank evaluates."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch.distributed as dist

from hydraft.config.data import DataConfig
from hydraft.plan import scoring

Done = Callable[[int], None]
"""Called with the number of records that all ranks have finished since the last call."""


@dataclass(frozen=True)
class BatchSizes:
    """How many records are evaluated at a time."""

    micro_batch_size: int
    """Records, for the loss."""
    tokens: int
    """Tokens of a micro-batch, at most; used if ``memory`` is None."""
    max_new_tokens: int
    """Tokens of an answer, at most."""
    memory: scoring.GenerationMemory | None = None
    """Memory for answers; None for an architecture that the plan does not know."""

    @classmethod
    def of(
        cls, data: DataConfig, micro_batch_size: int, memory: scoring.GenerationMemory | None = None
    ) -> "BatchSizes":
        """The sizes of a run."""
        return cls(micro_batch_size, micro_batch_size * data.max_length, data.eval_max_new_tokens, memory)

    def answers(self, prompt: int) -> int:
        """Answers to generate at a time if the longest prompt has ``prompt`` tokens.

        If the memory is not known, they have no more tokens than a micro-batch: without recomputation, training keeps the keys and
        values of as many.
        """
        if self.memory is not None:
            return self.memory.records(prompt)
        return max(1, min(scoring.MOST, self.tokens // (prompt + self.max_new_tokens)))

    def rows(self, length: int, answer: int) -> int:
        """Rows to compute at a time: of prompts of up to ``length`` tokens, each with a label of up to ``answer`` tokens.

        If the memory is not known, they have no more tokens than a micro-batch.
        """
        if self.memory is not None:
            return self.memory.rows(length, answer)
        return max(1, min(scoring.MOST, self.tokens // (length + answer)))


def chunks(lengths: list[int], size: Callable[[int], int]) -> list[list[int]]:
    """Indices in chunks of similar lengths; ``size`` returns the number in a chunk whose longest has so many tokens."""
    found: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if not found or len(found[-1]) >= size(lengths[index]):  # this one is the longest of the chunk
            found.append([])
        found[-1].append(index)
    return found


def of_this_rank(count: int) -> Iterator[tuple[int, bool, range]]:
    """This rank's chunks out of ``count``: the chunk, whether its result counts, and the chunks of all ranks in this round.

    ZeRO-3 gathers weights in every forward pass, so all ranks must make the same number of passes. In the last round, a rank for
    which no chunk is left takes the last one again, and its result does not count.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    for start in range(0, count, world):
        current = range(start, min(start + world, count))
        yield min(start + rank, current[-1]), start + rank < count, current
