"""Examples to batches: padding, the order of an epoch, and blanks that even out the last batch.

Shapes: B records of a micro-batch, T tokens of its longest.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset, Sampler

from hydraft.data.encode import IGNORE, Example


class Examples(Dataset[Example]):
    """Encoded records; an index past the last one is a blank, which trains nothing."""

    def __init__(self, examples: list[Example], pad_id: int) -> None:
        self.examples = examples
        self.blank: Example = {"input_ids": [pad_id], "labels": [IGNORE]}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index] if index < len(self.examples) else self.blank


class EpochOrder(Sampler[int]):
    """The order of records in an epoch, the same for any number of ranks.

    Blanks (indices from ``size`` on) fill the last round of micro-batches, so that no rank sees a record twice, as
    it would where a sampler wraps around, and none is dropped.
    """

    def __init__(self, size: int, multiple: int, seed: int, shuffle: bool) -> None:
        """``multiple``: records that all ranks take in one round, micro-batch x ranks."""
        self.size = size
        self.padded = -(-size // multiple) * multiple
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose which epoch's order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.padded

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            yield from torch.randperm(self.size, generator=generator).tolist()
        else:
            yield from range(self.size)
        yield from range(self.size, self.padded)


@dataclass
class Collator:
    """Pad a micro-batch to its longest record, on the right. Padding is masked and never a label."""

    pad_id: int

    def __call__(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        """Tensors of shape (B, T): input_ids, attention_mask, labels."""
        length = max(len(example["input_ids"]) for example in examples)

        def padded(rows: list[list[int]], value: int) -> torch.Tensor:
            return torch.tensor([row + [value] * (length - len(row)) for row in rows])  # (B, T)

        ids = [example["input_ids"] for example in examples]
        return {
            "input_ids": padded(ids, self.pad_id),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
            "labels": padded([example["labels"] for example in examples], IGNORE),
        }
