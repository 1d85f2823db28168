"""Truncates the two sequences of a preference pair together, so that both answers still follow the same prompt.

Shapes: T tokens of one sequence, P tokens of the prompt that both begin with.
"""

from itertools import takewhile

from hydraft.data.labels import IGNORE
from hydraft.data.tokenize import Example, Truncation, truncate


def truncate_pair(examples: list[Example], max_length: int) -> list[tuple[Example, Truncation]]:
    """Cut the chosen and the rejected sequence to ``max_length`` tokens each.

    The common prompt is cut in both as ``truncate`` cuts it, from its middle, by as much as the longer sequence needs. Then each
    sequence is cut at the end of its answer. ``Truncation`` counts the tokens of both sequences; the pair is one record.
    """
    chosen, rejected = examples
    kept = _common_cut([chosen, rejected], max_length)
    found = [_end(example, max_length) for example in kept]
    lost = [_lost(before, after) for before, after in zip(examples, found, strict=True)]
    same = int(found[0]["input_ids"] == found[1]["input_ids"])
    cut = any(prompt + answer for prompt, answer in lost)
    counts = [Truncation(int(cut), *lost[0], same), Truncation(0, *lost[1])]
    return list(zip(found, counts, strict=True))


def _common_cut(examples: list[Example], max_length: int) -> list[Example]:
    """Remove the same tokens from the middle of the prompt, until a quarter of ``max_length`` is left of it."""
    excess = max(len(example["input_ids"]) for example in examples) - max_length
    if excess <= 0:
        return examples
    pairs = zip(*(example["input_ids"][: _start(example)] for example in examples), strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))  # P
    keep = max(shared - excess, min(shared, max_length // 4))
    head = (keep + 1) // 2
    tail = shared - (keep - head)
    return [_without(example, head, tail) for example in examples]


def _end(example: Example, max_length: int) -> Example:
    """Cut what is still too long at its end. A prompt that is longer, which has much that the other has not, is cut first."""
    if _start(example) > max_length // 2:
        return truncate(example, max_length)[0]
    return _without(example, max_length, len(example["input_ids"]))


def _without(example: Example, start: int, end: int) -> Example:
    """The example without the tokens from ``start`` to ``end``."""
    ids, labels = example["input_ids"], example["labels"]
    return {**example, "input_ids": ids[:start] + ids[end:], "labels": labels[:start] + labels[end:]}


def _start(example: Example) -> int:
    """Where the answer begins: the index of the first trained token."""
    return next((n for n, label in enumerate(example["labels"]) if label != IGNORE), len(example["labels"]))


def _lost(before: Example, after: Example) -> tuple[int, int]:
    """The untrained and the trained tokens that were cut."""
    trained = [sum(label != IGNORE for label in each["labels"]) for each in (before, after)]
    answer = trained[0] - trained[1]
    return len(before["input_ids"]) - len(after["input_ids"]) - answer, answer
