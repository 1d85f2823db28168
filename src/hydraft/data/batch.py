"""Examples to batches: padding-free or padded, the order of an epoch, packing, and blanks that even out the last batch.

Shapes: B rows of a micro-batch, T tokens of a row, N tokens of all its documents together, L trained tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from hydraft.config.choices import Batching, Kernels
from hydraft.config.schema import DataConfig
from hydraft.data.labels import IGNORE
from hydraft.data.tokenize import Example

Item = list[Example]
"""What a sampler's index stands for: one example, or with packing the examples of one bin."""


class Examples(Dataset[Item]):
    """Encoded records, alone or in bins; an index past the last one is a blank, which trains nothing."""

    def __init__(self, examples: Sequence[Example], pad_id: int, bins: list[list[int]] | None = None) -> None:
        self.examples = examples
        self.bins = bins
        self.blank: Item = [{"input_ids": [pad_id], "labels": [IGNORE]}]

    def __len__(self) -> int:
        return len(self.examples) if self.bins is None else len(self.bins)

    def __getitem__(self, index: int) -> Item:
        if index >= len(self):
            return self.blank
        members = [index] if self.bins is None else self.bins[index]
        return [self.examples[member] for member in members]


def pack(lengths: list[int], capacity: int) -> list[list[int]]:
    """Fill bins of ``capacity`` tokens with whole records: best-fit decreasing.

    Returns:
        The records of each bin. Best fit takes, longest record first, the fullest bin that still has room
        (Johnson 1974: at most 11/9 of the fewest bins possible, and 6/9 of one more).
    """
    bins: list[list[int]] = []
    room: dict[int, list[int]] = {}  # free tokens → bins with that many
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        size = lengths[index]
        free = next((f for f in range(size, capacity + 1) if room.get(f)), None)
        if free is None:
            bins.append([index])
            target, left = len(bins) - 1, capacity - size
        else:
            target, left = room[free].pop(), free - size
            bins[target].append(index)
        room.setdefault(left, []).append(target)
    return bins


def fill(lengths: list[int], bins: list[list[int]], capacity: int) -> str:
    """How full bins are, in words."""
    share = sum(lengths) / (len(bins) * capacity)
    return f"data.packing: {len(lengths):,} records in {len(bins):,} bins, {share:.0%} full"


class EpochOrder(Sampler[int]):
    """The order of items in an epoch, the same for any number of ranks.

    Blanks (indices from ``size`` on) fill the last round of micro-batches, so that no rank sees a record twice, as
    it would where a sampler wraps around, and none is dropped.
    """

    def __init__(
        self,
        size: int,
        multiple: int,
        seed: int,
        shuffle: bool,
        lengths: list[int] | None = None,
        window: int = 0,
        batch: int = 1,
        pass_over: Sequence[int] = (),
    ) -> None:
        """An order of ``size`` items.

        Args:
            multiple: items that all ranks take in one round, micro-batch x ranks.
            lengths: tokens of each item; with it, items of like length come together within ``window`` items.
            window: a multiple of the global batch, so that which window an item falls into is independent of the ranks.
            batch: items of an optimizer step, the global batch.
            pass_over: optimizer steps, from 1, whose items are blanks from there on.
        """
        self.size = size
        self.padded = -(-size // multiple) * multiple
        self.seed = seed
        self.shuffle = shuffle
        self.lengths = lengths
        self.window = window
        self.batch = batch
        self.pass_over = sorted(pass_over)
        self.steps = -(-size // batch)
        """Optimizer steps an epoch."""
        self.epoch = 0
        self._orders: dict[int, list[int]] = {}
        self._blanks: dict[int, set[int]] = {}

    def begin(self, epoch: int) -> None:
        """Choose which epoch's order the next iteration gives. (Not ``set_epoch``: who finds that name calls it, or forgets to.)"""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.padded

    def __iter__(self) -> Iterator[int]:
        gone = self._gone(self.epoch)
        yield from (self.size if item in gone else item for item in self._order(self.epoch))
        yield from range(self.size, self.padded)

    def items(self, step: int) -> list[int]:
        """The items of an optimizer step, counted from 1 over all epochs, whether or not it is passed over.

        They come in rounds: a micro-batch for rank 0, one for rank 1, and so on.
        """
        epoch, number = divmod(step - 1, self.steps)
        return self._order(epoch)[number * self.batch : (number + 1) * self.batch]

    def passes_over(self, step: int) -> bool:
        """Whether nothing is left to train in an optimizer step, counted from 1."""
        if not self.pass_over or step < self.pass_over[0]:
            return False
        return self._gone((step - 1) // self.steps).issuperset(self.items(step))

    def _gone(self, epoch: int) -> set[int]:
        """The items that are blanks in an epoch: of steps passed over in it or before."""
        if epoch not in self._blanks:
            before = [step for step in self.pass_over if (step - 1) // self.steps <= epoch]
            self._blanks[epoch] = {item for step in before for item in self.items(step)}
        return self._blanks[epoch]

    def _order(self, epoch: int) -> list[int]:
        """All items of an epoch; those of late are kept."""
        if epoch not in self._orders:
            order = list(range(self.size))
            if self.shuffle:
                generator = torch.Generator().manual_seed(self.seed + epoch)
                order = torch.randperm(self.size, generator=generator).tolist()
            if self.lengths is not None:
                for start in range(0, self.size, self.window):
                    order[start : start + self.window] = sorted(
                        order[start : start + self.window],
                        key=lambda index: -self.lengths[index],  # type: ignore[index]
                    )
            if len(self._orders) > 1:
                self._orders.pop(min(self._orders))
            self._orders[epoch] = order
        return self._orders[epoch]


@dataclass
class Padded:
    """Pad a micro-batch to its longest row, on the right. Padding is masked and never a label."""

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
        }


@dataclass
class PaddingFree:
    """All documents of a micro-batch in one row, with their boundaries: no padding, and none sees another.

    Positions begin anew with each document; attention reads the boundaries ``cu_seq_lens_q`` (``models/attention.py``).
    Logits are computed only where a label is: ``logits_to_keep`` names those positions, ``shift_labels`` the tokens
    they are to say.
    """

    def __call__(self, items: list[Item]) -> dict[str, Any]:
        """input_ids, position_ids, labels (1, N); logits_to_keep, shift_labels (L,); cu_seq_lens (documents + 1,)."""
        examples = [example for item in items for example in item]
        lengths = [len(example["input_ids"]) for example in examples]
        ids = torch.tensor([[token for example in examples for token in example["input_ids"]]])  # (1, N)
        # The label of a document's first token is IGNORE, so no document is asked to say how the next begins.
        labels = torch.tensor([[label for example in examples for label in example["labels"]]])  # (1, N)
        following = torch.nn.functional.pad(labels, (0, 1), value=IGNORE)[:, 1:]  # (1, N): what comes next
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
        }


@dataclass
class PaddingFreeForUnsloth:
    """The same row as Unsloth's models want it told: the length of each document, and a label for every token.

    They pass over ``cu_seq_lens_q``, so documents would see each other, and they choose the tokens of the loss themselves.
    """

    def __call__(self, items: list[Item]) -> dict[str, Any]:
        """input_ids, position_ids, labels (1, N); packed_seq_lengths (documents,)."""
        batch = PaddingFree()(items)
        lengths = batch["cu_seq_lens_q"].diff()
        return {name: batch[name] for name in ("input_ids", "position_ids", "labels")} | {"packed_seq_lengths": lengths}


def collator(data: DataConfig, pad_id: int, kernels: Kernels = Kernels.torch) -> Callable[[list[Item]], dict[str, Any]]:
    """What makes a batch of items, as the data section says, for a model with these kernels."""
    if data.batching is Batching.padded:
        return Padded(pad_id)
    return PaddingFreeForUnsloth() if kernels is Kernels.unsloth else PaddingFree()
