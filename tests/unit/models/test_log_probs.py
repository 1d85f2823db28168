"""Log-probabilities of trained tokens: chunks against all logits, and both forms of a batch against each other."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hydraft.data.batch import Padded, PaddingFree
from hydraft.data.labels import IGNORE
from hydraft.models import attention, log_probs, loss
from hydraft.models.log_probs import of_hidden, token_log_probs
from hydraft.system.source_tree import TINY

ITEMS: list[Any] = [
    [
        {"input_ids": [5, 6, 7, 8], "labels": [IGNORE, IGNORE, 7, 8]},
        {"input_ids": [5, 6, 9], "labels": [IGNORE, IGNORE, 9]},
    ],
    [{"input_ids": [3], "labels": [IGNORE]}, {"input_ids": [3], "labels": [IGNORE]}],  # a filler
    [{"input_ids": [11, 12, 13], "labels": [IGNORE, 12, 13]}, {"input_ids": [11, 5], "labels": [IGNORE, 5]}],
]


@pytest.mark.parametrize("tokens", [0, 1, 7, 8, 9, 20])
def test_chunks_are_the_whole(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setattr(loss, "ROWS", 4)
    torch.manual_seed(0)
    hidden = torch.randn(tokens, 6, dtype=torch.float64, requires_grad=True)
    weight, targets = torch.randn(11, 6, dtype=torch.float64), torch.randint(0, 11, (tokens,))
    upstream = torch.randn(tokens, dtype=torch.float64)
    expected = torch.log_softmax(hidden @ weight.T, -1).gather(1, targets[:, None])[:, 0]
    (gradient,) = torch.autograd.grad(expected @ upstream, hidden)
    found = of_hidden(hidden, weight, targets)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(found @ upstream, hidden)[0], gradient, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(of_hidden(hidden, weight, targets), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunked", [True, False])
def test_both_forms_of_a_batch_give_the_published_sums(chunked: bool) -> None:
    """``log p(answer | prompt)`` of each document by itself, from all logits."""
    model: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float64)
    attention.use(model)
    expected = []
    for example in (example for item in ITEMS for example in item):
        logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0].log_softmax(-1)
        labels = example["labels"]
        expected.append(
            sum((logits[i - 1, labels[i]] for i in range(1, len(labels)) if labels[i] != IGNORE), torch.tensor(0.0))
        )
    for collate in (Padded(0), PaddingFree()):
        found = token_log_probs(model, collate(ITEMS), chunked)
        torch.testing.assert_close(found.summed(), torch.stack(expected).double(), rtol=0, atol=1e-10)
        assert found.tokens().tolist() == [2, 1, 0, 0, 2, 1]


def test_a_row_of_fillers_has_a_gradient_of_zero() -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    attention.use(model)
    model.lm_head.weight.requires_grad_(False)
    for collate in (Padded(0), PaddingFree()):
        found = log_probs.token_log_probs(model, collate([ITEMS[1]]), True)
        found.summed().sum().backward()
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    assert gradients and all(float(each.abs().max()) == 0 for each in gradients)
