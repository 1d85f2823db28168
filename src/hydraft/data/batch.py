"""Batches of examples: packing, the order of an epoch, and collators with and without padding.

Shapes: B rows of a micro-batch, T tokens of a row, N tokens of all its documents, L trained tokens.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import Sampler

from hydraft.config.choices import Batching, Kernels
from hydraft.config.data import DataConfig
from hydraft.data.examples import BESIDE, Item
from hydraft.data.labels import IGNORE
from hydraft.data.tokenize import Example

CHUNK = 1 << 16
"""Items of an epoch's order that are held as Python numbers at a time."""

WINDOW = 16
"""Global batches in which ``data.group_by_length`` sorts items by length."""


def group(lengths: Sequence[int], sequences: int, capacity: int | None) -> list[list[int]] | None:
    """The bins of a run; None if every example is an item of its own.

    Args:
        lengths: tokens of each example.
        sequences: consecutive examples that belong to one record and stay together.
        capacity: tokens of a packed bin; None without packing.
    """
    if sequences == 1:
        return None if capacity is None else pack(lengths, capacity)
    records = [list(range(start, start + sequences)) for start in range(0, len(lengths), sequences)]
    if capacity is None:
        return records
    packed = pack([sum(lengths[i] for i in record) for record in records], capacity * sequences)
    return [[index for number in members for index in records[number]] for members in packed]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Pack examples into bins of ``capacity`` tokens, without splitting any: best-fit decreasing.

    Returns:
        The examples of each bin. From the longest on, each example goes to the fullest bin that has room for it (Johnson 1974: at
        most 11/9 of the optimal number of bins, plus 6/9).
    """
    bins: list[list[int]] = []
    room: dict[int, list[int]] = {}  # free tokens → bins with so many
    sizes: list[int] = []  # the keys of ``room`` that have bins, sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        size = lengths[index]
        at = bisect_left(sizes, size)
        if at == len(sizes):
            bins.append([index])
            target, left = len(bins) - 1, capacity - size
        else:
            free = sizes[at]
            target, left = room[free].pop(), free - size
            bins[target].append(index)
            if not room[free]:
                del sizes[at]
        if not (same := room.setdefault(left, [])):
            insort(sizes, left)
        same.append(target)
    return bins


def fill(lengths: Sequence[int], bins: list[list[int]], capacity: int) -> str:
    """A line about how full the bins are."""
    share = sum(lengths) / (len(bins) * capacity)
    return f"data.packing: {len(lengths):,} records in {len(bins):,} bins, {share:.0%} full"


@dataclass(eq=False)
class EpochOrder(Sampler[int]):
    """The order of items in an epoch, the same for any number of ranks.

    Fillers (indices from ``len(lengths)`` on) complete the last round of micro-batches, so that no item is repeated or dropped.
    """

    lengths: Sequence[int]
    """Tokens of each item."""
    round: int
    """Items that all ranks take at once: micro-batch x ranks."""
    batch: int
    """Items of an optimizer step: the global batch."""
    seed: int | None
    """Seeds the order of each epoch; None keeps the order of the file."""
    by_length: bool = False
    """Sort items by length within ``WINDOW`` global batches. The window does not depend on the number of ranks."""
    skipped: Sequence[int] = ()
    """Optimizer steps, from 1, whose items are fillers from then on."""
    epoch: int = field(default=0, init=False)
    _orders: dict[int, torch.Tensor] = field(default_factory=dict, init=False)
    _removed: dict[int, set[int]] = field(default_factory=dict, init=False)

    @property
    def size(self) -> int:
        """Items, without fillers."""
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.size // self.batch)

    def begin(self, epoch: int) -> None:
        """Choose the epoch of the next iteration. (Not named ``set_epoch``, which accelerate would call by itself.)"""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.size // self.round) * self.round

    def __iter__(self) -> Iterator[int]:
        removed = self._removed_items(self.epoch)
        for part in self._order(self.epoch).split(CHUNK):
            yield from (self.size if item in removed else item for item in part.tolist())
        yield from range(self.size, len(self))

    def items(self, step: int) -> list[int]:
        """The items of an optimizer step, counted from 1 over all epochs, whether or not it is skipped.

        They are in the order of micro-batches: one for rank 0, one for rank 1, and so on.
        """
        epoch, number = divmod(step - 1, self.steps)
        found: list[int] = self._order(epoch)[number * self.batch : (number + 1) * self.batch].tolist()
        return found

    def skips(self, step: int) -> bool:
        """Whether an optimizer step, counted from 1, has no item left to train."""
        if not self.skipped or step < min(self.skipped):
            return False
        return self._removed_items((step - 1) // self.steps).issuperset(self.items(step))

    def _removed_items(self, epoch: int) -> set[int]:
        """The items of steps that are skipped in this epoch or an earlier one."""
        if epoch not in self._removed:
            before = [step for step in self.skipped if (step - 1) // self.steps <= epoch]
            self._removed[epoch] = {item for step in before for item in self.items(step)}
        return self._removed[epoch]

    def _order(self, epoch: int) -> torch.Tensor:
        """All items of an epoch (items,), as a tensor: a list takes five times the memory. The last two are cached."""
        if epoch not in self._orders:
            order = torch.arange(self.size)
            if self.seed is not None:
                generator = torch.Generator().manual_seed(self.seed + epoch)
                order = torch.randperm(self.size, generator=generator)
            window = WINDOW * self.batch
            for start in range(0, self.size if self.by_length else 0, window):
                part: list[int] = order[start : start + window].tolist()
                order[start : start + window] = torch.tensor(sorted(part, key=lambda index: -self.lengths[index]))
            if len(self._orders) > 1:
                self._orders.pop(min(self._orders))
            self._orders[epoch] = order
        return self._orders[epoch]


def _beside(examples: list[Example]) -> dict[str, torch.Tensor]:
    """What the examples have besides their tokens, each (documents,)."""
    return {name: torch.tensor([example[name] for example in examples]) for name in BESIDE if name in examples[0]}  # type: ignore[literal-required]


@dataclass
class Padded:
    """Pads a micro-batch on the right to its longest row. Padding is masked and not trained."""

    pad_id: int

    def __call__(self, items: list[Item]) -> dict[str, torch.Tensor]:
        """Tensors of shape (B, T): input_ids, attention_mask, labels."""
        examples = [example for item in items for example in item]
        length = max(len(example["input_ids"]) for example in examples)

        def padded(rows: list[list[int]], value: int) -> torch.Tensor:
            return torch.tensor([row + [value] * (length - len(row)) for row in rows])  # (B, T)

        ids = [example["input_ids"] for example in examples]
        return {
            "input_ids": padded(ids, self.pad_id),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
            "labels": padded([example["labels"] for example in examples], IGNORE),
            **_beside(examples),
        }


@dataclass
class PaddingFree:
    """Concatenates all documents of a micro-batch into one row without padding; no document attends to another.

    Position ids restart with each document, and attention reads the boundaries ``cu_seq_lens_q`` (``models/attention.py``). Logits
    are only computed at ``logits_to_keep``, the positions before trained tokens; ``shift_labels`` has those tokens.
    """

    def __call__(self, items: list[Item]) -> dict[str, Any]:
        """input_ids, position_ids, labels (1, N); logits_to_keep, shift_labels (L,); cu_seq_lens (documents + 1,)."""
        examples = [example for item in items for example in item]
        lengths = [len(example["input_ids"]) for example in examples]
        ids = torch.tensor([[token for example in examples for token in example["input_ids"]]])  # (1, N)
        # The label of a document's first token is IGNORE, so the last token of the document before it predicts nothing.
        labels = torch.tensor([[label for example in examples for label in example["labels"]]])  # (1, N)
        following = torch.nn.functional.pad(labels, (0, 1), value=IGNORE)[:, 1:]  # (1, N)
        kept = (following[0] != IGNORE).nonzero().squeeze(1)  # (L,)
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return {
            "input_ids": ids,
            "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
            "labels": labels,
            "shift_labels": following[0, kept],
            "logits_to_keep": kept,
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
            **_beside(examples),
        }


@dataclass
class PaddingFreeForUnsloth:
    """The same row in the form of Unsloth's models: the length of each document, and labels for all tokens.

    These models ignore ``cu_seq_lens_q`` and ``logits_to_keep``.
    """

    def __call__(self, items: list[Item]) -> dict[str, Any]:
        """input_ids, position_ids, labels (1, N); packed_seq_lengths (documents,)."""
        batch = PaddingFree()(items)
        lengths = batch["cu_seq_lens_q"].diff()
        return {name: batch[name] for name in ("input_ids", "position_ids", "labels")} | {"packed_seq_lengths": lengths}


def collator(data: DataConfig, pad_id: int, kernels: Kernels = Kernels.torch) -> Callable[[list[Item]], dict[str, Any]]:
    """The collator of ``data.batching``, for a model with these kernels."""
    if data.batching is Batching.padded:
        return Padded(pad_id)
    return PaddingFreeForUnsloth() if kernels is Kernels.unsloth else PaddingFree()
