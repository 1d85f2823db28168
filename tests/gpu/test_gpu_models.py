"""Models on a GPU: they compute the same as on the CPU, and the documents of a row do not attend to each other."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from gpu.on_card import DEVICE, gpu_only
from hydraft.config.choices import Precision, QuantKind
from hydraft.config.model import ModelConfig
from hydraft.config.schema import QuantConfig
from hydraft.data.batch import PaddingFree
from hydraft.models.load import load_base
from hydraft.system.source_tree import TINY

pytestmark = pytest.mark.gpu

LENGTHS = (9, 1, 30, 12)


def documents() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(300, 3000, (length,), generator=generator).tolist() for length in LENGTHS]


def loaded(kind: QuantKind, precision: Precision, device: torch.device) -> PreTrainedModel:
    section = ModelConfig(name="tiny", path=str(TINY))
    return load_base(section, QuantConfig(kind=kind), precision, device).to(device).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "precision", "tolerance"),
    [
        (QuantKind.none, Precision.fp32, 1e-4),
        (QuantKind.none, Precision.bf16, 0.03),
        pytest.param(QuantKind.none, Precision.fp16, 0.01, marks=gpu_only),
        (QuantKind.nf4, Precision.fp32, 0.02),
        (QuantKind.nf4, Precision.bf16, 0.05),
        (QuantKind.int8, Precision.bf16, 0.1),
    ],
)
@torch.no_grad()
def test_logits_equal_those_of_the_cpu(kind: QuantKind, precision: Precision, tolerance: float) -> None:
    """Compared by norm. On a GPU, int8 also rounds the inputs of layers, which it does not on the CPU."""
    found = []
    for device in (torch.device("cpu"), DEVICE):
        model = loaded(
            kind, Precision.fp32 if precision is Precision.fp16 and device.type == "cpu" else precision, device
        )
        assert {parameter.device.type for parameter in model.parameters()} == {device.type}
        ids = torch.tensor([documents()[2]], device=device)
        found.append(model(input_ids=ids).logits.float().cpu())
    on_cpu, on_device = found
    assert on_device.isfinite().all()
    assert (on_device - on_cpu).norm() <= tolerance * on_cpu.norm()
    assert on_cpu.norm() > 1


def batch() -> dict[str, Any]:
    """The collated documents, without labels, so that the logits of all tokens are computed."""
    made = PaddingFree()([[{"input_ids": ids, "labels": ids}] for ids in documents()])
    for name in ("labels", "shift_labels", "logits_to_keep"):
        made.pop(name, None)
    return {name: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for name, value in made.items()}


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
@torch.no_grad()
def test_documents_of_a_row_are_independent(precision: Precision) -> None:
    """In bf16, flash attention computes the row if available; in fp32, each document is one sdpa call."""
    model, inputs = loaded(QuantKind.none, precision, DEVICE), batch()
    row = model(**inputs).logits[0].float()  # (N, V)
    ends = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    for (start, end), ids in zip(pairwise(ends), documents(), strict=True):
        alone = model(input_ids=torch.tensor([ids], device=DEVICE)).logits[0].float()
        assert (row[start:end] - alone).norm() <= (1e-4 if precision is Precision.fp32 else 0.03) * alone.norm()
    inputs["input_ids"][0, ends[2] : ends[3]] = 77  # change the third document
    other = model(**inputs).logits[0].float()
    for document, (start, end) in enumerate(pairwise(ends)):
        assert torch.equal(row[start:end], other[start:end]) == (document != 2), document


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
def test_no_gradient_passes_between_documents(precision: Precision) -> None:
    model, inputs = loaded(QuantKind.none, precision, DEVICE), batch()
    embeddings = model.get_input_embeddings()(inputs.pop("input_ids")).detach().requires_grad_()  # (1, N, D)
    ends = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    model(inputs_embeds=embeddings, **inputs).logits[0, ends[2] : ends[3]].float().pow(2).sum().backward()
    assert embeddings.grad is not None
    for document, (start, end) in enumerate(pairwise(ends)):
        assert bool(embeddings.grad[0, start:end].any()) == (document == 2), document
