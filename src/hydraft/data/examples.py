"""The items of a data set: encoded examples one by one, those of a record together, or in bins; with what a document has beside its tokens."""

from collections.abc import Sequence

from torch.utils.data import Dataset

from hydraft.data.labels import IGNORE
from hydraft.data.tokenize import Example

Item = list[Example]
"""An element of the data set: one example, the sequences of one record, or, with packing, the examples of one bin."""

BESIDE = ("index", "desirable")
"""What an example may have besides its tokens; a batch has one value for each document."""


class Examples(Dataset[Item]):
    """Encoded examples, one by one or in bins; indices from ``len(self)`` on are fillers, whose tokens are not trained."""

    def __init__(
        self,
        examples: Sequence[Example],
        pad_id: int,
        bins: list[list[int]] | None = None,
        sequences: int = 1,
        indexed: bool = False,
        mismatched: int | None = None,
    ) -> None:
        """Create it.

        Args:
            bins: the examples of each item; None for one each.
            sequences: examples of a filler.
            indexed: whether each document has its number, ``index``, from 0 over all documents of all examples.
            mismatched: an example is followed by the answer of the one before it after its own prompt, cut to so many tokens; None:
                it is not.
        """
        self.examples = examples
        self.bins = bins
        self.indexed = indexed
        self.mismatched = mismatched
        filler: Example = {"input_ids": [pad_id], "labels": [IGNORE]}
        if indexed:
            filler["index"] = -1
        if mismatched is not None:
            filler["desirable"] = False
        self.filler: Item = [filler] * (sequences * (1 if mismatched is None else 2))

    def __len__(self) -> int:
        return len(self.examples) if self.bins is None else len(self.bins)

    def __getitem__(self, index: int) -> Item:
        if index >= len(self):
            return self.filler
        return [document for member in self.members(index) for document in self.documents(member)]

    def documents(self, member: int) -> Item:
        """The documents of an example."""
        example = self.examples[member]
        found = [example]
        if self.mismatched is not None:
            found.append(mismatch(example, self.examples[(member - 1) % len(self.examples)], self.mismatched))
        if self.indexed:
            first = member * len(found)
            found = [{**document, "index": first + place} for place, document in enumerate(found)]
        return found

    def members(self, index: int) -> list[int]:
        """The indices of the examples of an item."""
        return [index] if self.bins is None else self.bins[index]

    def lengths(self, of_examples: Sequence[int]) -> Sequence[int]:
        """Tokens of each item, from those of each example."""
        return of_examples if self.bins is None else [sum(of_examples[i] for i in members) for members in self.bins]


def mismatch(example: Example, other: Example, max_length: int) -> Example:
    """The answer of ``other`` after the prompt of ``example``, with ``max_length`` tokens at most."""

    def answer(one: Example) -> int:
        return next((at for at, label in enumerate(one["labels"]) if label != IGNORE), len(one["labels"]))

    own, start = answer(example), answer(other)
    ids, labels = example["input_ids"][:own], [IGNORE] * own
    return {
        **example,
        "input_ids": (ids + other["input_ids"][start:])[:max_length],
        "labels": (labels + other["labels"][start:])[:max_length],
    }
