"""An epoch sees every record once, whatever the number of ranks; padding is never trained."""

import pytest
import torch

from hydraft.data.batch import Collator, EpochOrder, Examples
from hydraft.data.encode import IGNORE


@pytest.mark.parametrize("size", [1, 7, 8, 23])
@pytest.mark.parametrize(("micro", "ranks"), [(1, 1), (2, 1), (2, 2), (4, 3)])
def test_an_epoch_is_each_record_once_and_blanks_at_its_end(size: int, micro: int, ranks: int) -> None:
    order = list(EpochOrder(size, micro * ranks, seed=3, shuffle=True))
    assert sorted(order[:size]) == list(range(size))
    assert all(index >= size for index in order[size:])
    assert len(order) % (micro * ranks) == 0


def test_the_order_is_that_of_the_seed_and_the_epoch_and_not_of_the_ranks() -> None:
    one, two = EpochOrder(10, 2, seed=1, shuffle=True), EpochOrder(10, 4, seed=1, shuffle=True)
    first = list(one)
    assert first[:10] == list(two)[:10]
    one.set_epoch(1)
    assert list(one) != first
    assert list(EpochOrder(5, 2, seed=1, shuffle=False)) == [0, 1, 2, 3, 4, 5]


def test_a_batch_is_padded_on_the_right_and_padding_is_masked() -> None:
    examples = Examples([{"input_ids": [5, 6, 7], "labels": [IGNORE, 6, 7]}], pad_id=0)
    batch = Collator(0)([examples[0], examples[1]])  # the second is a blank
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE, 6, 7], [IGNORE] * 3]
    assert batch["labels"].dtype == torch.long
