"""An epoch has every record once on any number of ranks; padding is not trained; documents are independent."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GlmConfig, LlamaConfig, PreTrainedConfig, Qwen2Config

from hydraft.data.batch import EpochOrder, Padded, PaddingFree, group, pack
from hydraft.data.examples import Examples
from hydraft.data.labels import IGNORE
from hydraft.data.tokenize import Example
from hydraft.models import attention

DOCUMENTS: list[Example] = [
    {"input_ids": [5, 6, 7, 8], "labels": [IGNORE, IGNORE, 7, 8]},
    {"input_ids": [9, 10], "labels": [IGNORE, 10]},
    {"input_ids": [11, 12, 13], "labels": [IGNORE, 12, 13]},
]


SHAPE = {
    "vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "eos_token_id": 2,
}  # fmt: skip


def loaded(shape: PreTrainedConfig) -> Any:
    """A random model with hydraft's attention, as in a run."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32).eval()
    attention.register()
    model.set_attn_implementation(attention.NAME)
    model.config.use_cache = False
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    return loaded(LlamaConfig(**SHAPE))


@pytest.mark.parametrize("size", [1, 7, 8, 23])
@pytest.mark.parametrize(("micro", "ranks"), [(1, 1), (2, 1), (2, 2), (4, 3)])
@pytest.mark.parametrize("grouped", [False, True])
def test_an_epoch_has_each_record_once_and_fillers_at_its_end(size: int, micro: int, ranks: int, grouped: bool) -> None:
    lengths = [index * 7 % 5 for index in range(size)]
    order = list(EpochOrder(lengths, micro * ranks, 1, seed=3, by_length=grouped))
    assert sorted(order[:size]) == list(range(size))
    assert all(index >= size for index in order[size:])
    assert len(order) % (micro * ranks) == 0


def test_the_order_depends_on_seed_and_epoch_but_not_on_the_ranks() -> None:
    one, two = EpochOrder([1] * 10, 2, 4, seed=1), EpochOrder([1] * 10, 4, 4, seed=1)
    first = list(one)
    assert first[:10] == list(two)[:10]
    one.begin(1)
    assert list(one) != first
    assert list(EpochOrder([1] * 5, 2, 2, seed=None)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("micro", "ranks", "passes"), [(1, 1, 4), (2, 2, 1), (1, 2, 2)])
def test_a_step_has_the_same_items_however_it_is_split_and_may_be_skipped(micro: int, ranks: int, passes: int) -> None:
    whole = EpochOrder([1] * 10, micro * ranks, 4, seed=1)
    assert whole.steps == 3
    assert [item for step in (1, 2, 3) for item in whole.items(step)] == list(whole)[:10]
    assert not any(map(whole.skips, range(1, 7)))
    order = EpochOrder([1] * 10, micro * ranks, 4, seed=1, skipped=[2])
    assert list(order)[4:8] == [10] * 4 and list(order)[:4] == list(whole)[:4]
    assert [order.skips(step) for step in range(1, 7)] == [False, True, False, False, False, False]
    order.begin(1)
    whole.begin(1)
    gone = set(whole.items(2))
    assert list(order)[:10] == [10 if item in gone else item for item in list(whole)[:10]]


def test_items_are_sorted_by_length_within_their_window() -> None:
    lengths = [index % 4 for index in range(64)]
    plain = list(EpochOrder(lengths, 1, 2, seed=1))
    grouped = list(EpochOrder(lengths, 1, 2, seed=1, by_length=True))
    for start in (0, 32):  # WINDOW global batches of 2
        assert sorted(grouped[start : start + 32]) == sorted(plain[start : start + 32])
        found = [lengths[index] for index in grouped[start : start + 32]]
        assert found == sorted(found, reverse=True)


def test_bins_have_each_record_once_and_do_not_exceed_their_capacity() -> None:
    lengths = [(index * 37) % 90 + 10 for index in range(200)]
    bins = pack(lengths, 100)
    assert sorted(index for members in bins for index in members) == list(range(200))
    assert all(sum(lengths[index] for index in members) <= 100 for members in bins)
    assert len(bins) <= -(-sum(lengths) // 100) * 11 / 9 + 1  # the bound of the published proof
    assert pack([60, 50, 40, 30, 20], 100) == [[0, 2], [1, 3, 4]]  # calculated by hand


def test_the_sequences_of_a_record_stay_together() -> None:
    lengths = [10, 12, 30, 31, 4, 5]
    assert group(lengths, 2, None) == [[0, 1], [2, 3], [4, 5]]
    packed = group(lengths, 2, 40)
    assert packed == [[2, 3, 4, 5], [0, 1]]
    assert group(lengths, 1, None) is None and group(lengths, 1, 40) == pack(lengths, 40)
    examples = Examples([{"input_ids": [1], "labels": [1]}] * 6, 0, packed, sequences=2)
    assert examples.lengths(lengths) == [70, 22] and len(examples[0]) == 4 and len(examples[2]) == 2


def test_a_batch_is_padded_on_the_right_and_padding_is_masked() -> None:
    examples = Examples([{"input_ids": [5, 6, 7], "labels": [IGNORE, 6, 7]}], pad_id=0)
    batch = Padded(0)([examples[0], examples[1]])  # the second is a filler
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE, 6, 7], [IGNORE] * 3]


def test_a_padding_free_batch_has_the_boundaries_and_the_trained_tokens_of_its_documents() -> None:
    batch = PaddingFree()([DOCUMENTS[:2], DOCUMENTS[2:]])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 10, 11, 12, 13]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 4, 6, 9]
    assert batch["logits_to_keep"].tolist() == [1, 2, 4, 6, 7]
    assert batch["shift_labels"].tolist() == [7, 8, 10, 12, 13]


def test_the_loss_is_equal_with_and_without_padding(model: Any) -> None:
    """The same to 1e-6, and the gradients to 1e-6 of their norm."""
    items = [[document] for document in DOCUMENTS]
    found = []
    for collate in (Padded(0), PaddingFree()):
        model.zero_grad()
        loss = model(**collate(items), num_items_in_batch=torch.tensor(5)).loss
        loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    (padded, gradient), (free, free_gradient) = found
    assert free == pytest.approx(float(padded), rel=1e-6)
    assert (free_gradient - gradient).norm() <= 1e-6 * gradient.norm()


@pytest.mark.parametrize("family", [LlamaConfig, GlmConfig, Qwen2Config])
@pytest.mark.parametrize("edited", [0, 1, 2])
def test_no_document_attends_to_another(family: type[PreTrainedConfig], edited: int) -> None:
    """After an edit of one document, the logits of the others are bit-equal."""
    model = loaded(family(**SHAPE))
    others = [*DOCUMENTS]
    ids = [token + 16 for token in DOCUMENTS[edited]["input_ids"]]
    others[edited] = {"input_ids": ids, "labels": [IGNORE, *ids[1:]]}

    def logits(documents: list[Example]) -> torch.Tensor:
        batch = PaddingFree()([documents])
        for name in ("labels", "shift_labels", "logits_to_keep"):  # all logits are compared, not only the trained ones
            del batch[name]
        with torch.no_grad():
            found: torch.Tensor = model(**batch).logits[0]
        return found

    before, after = logits(DOCUMENTS), logits(others)
    for document, (start, end) in enumerate(pairwise([0, 4, 6, 9])):
        assert torch.equal(before[start:end], after[start:end]) == (document != edited)


def test_a_filler_trains_nothing(model: Any) -> None:
    filler = Examples([], pad_id=0)[0]
    loss = model(**PaddingFree()([filler]), num_items_in_batch=torch.tensor(5)).loss
    loss.backward()
    assert float(loss) == 0


def test_a_left_padded_batch_is_masked(model: Any) -> None:
    """Generation pads on the left; the attention over documents must not change its results."""
    ids, mask = torch.tensor([[0, 0, 5, 6], [5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    with torch.no_grad():
        ours = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0)
        model.set_attn_implementation("sdpa")
        theirs = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0)
        model.set_attn_implementation(attention.NAME)
    assert torch.equal(ours, theirs)
