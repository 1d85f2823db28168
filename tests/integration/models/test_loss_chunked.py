"""The chunked loss and its gradients equal those of transformers, for every family and for a sharded head."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.equivalence import train
from conftest import RECORDS, config_of
from families import FAMILIES
from hydraft.config.schema import Config
from hydraft.data.batch import Padded, PaddingFree
from hydraft.errors import ConfigError
from hydraft.models import loss_chunked, prepare
from hydraft.models.load import load_trainable, trainable
from hydraft.plan.plan import make_plan

LENGTHS, PROMPT = (9, 30, 21), 5
"""Tokens of three documents, and the number of tokens at the start of each that are not trained."""
TOLERANCE = {"fp32": 1e-6, "bf16": 2e-2}
"""Relative. In bf16, gradients have 8 bits and are rounded at different places; the loss differs by at most 1e-5."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small chunks, so that a tiny model's batch has several of different sizes."""
    monkeypatch.setattr("hydraft.models.loss.ROWS", 16)


def batch_of(config: Config, vocabulary: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(9, vocabulary, (length,), generator=generator).tolist() for length in LENGTHS]
    items = [[{"input_ids": row, "labels": [-100] * PROMPT + row[PROMPT:]}] for row in rows]
    return (Padded(0) if config.data.batching.value == "padded" else PaddingFree())(items)  # type: ignore[arg-type]


def losses(overrides: list[str], count: int | None) -> Iterator[tuple[float, dict[str, torch.Tensor]]]:
    """Loss and gradients: whole as in transformers, and in chunks."""
    for kind in ("whole", "chunked"):
        config = config_of(*overrides, f"kernels.loss={kind}")
        model = load_trainable(dataclasses.replace(config, model=prepare.native(config.model, config.seed)))
        for name, parameter in trainable(model).items():
            if "lora_B" in name:  # it starts at 0, and A would have no gradient
                torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
        batch = batch_of(config, model.config.vocab_size) | ({} if count is None else {"num_items_in_batch": count})
        output = model.train()(**batch)
        assert (output.logits is None) == (kind == "chunked")
        output.loss.backward()
        gradients = {name: parameter.grad for name, parameter in trainable(model).items()}
        yield output.loss.item(), {name: gradient for name, gradient in gradients.items() if gradient is not None}


CASES = {
    "fp32": ["quant=none"],
    "nf4": ["quant=nf4"],
    "bf16": ["quant=none", "train.precision=bf16"],
    "padded": ["quant=none", "data.batching=padded"],
    "recomputed": ["quant=none", "train.gradient_checkpointing=true"],
}


@pytest.mark.parametrize(
    ("family", "case"),
    [*((family, "fp32") for family in FAMILIES), ("llama3", "bf16"), ("chatglm2", "bf16"), ("chatglm2", "padded"),
     ("qwen3", "recomputed"), ("tied", "nf4")],
)  # fmt: skip
def test_chunks_give_the_same_loss_and_gradients_as_the_whole(family: str, case: str) -> None:
    model = "model=qwen model.size=2.5-0.5b" if family == "tied" else FAMILIES[family]
    overrides = [*model.split(), "model.init=random", "model.scale=tiny", *CASES[case]]
    (whole, expected), (ours, found) = losses(overrides, 101)
    tolerance = TOLERANCE["bf16" if case == "bf16" else "fp32"]
    assert ours == pytest.approx(whole, rel=min(tolerance, 1e-5))
    assert found.keys() == expected.keys() and len(found) > 8
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm(), name


def test_without_a_token_count_the_loss_is_the_mean() -> None:
    overrides = ["model=tiny", "quant=none"]
    (whole, _), (ours, _) = losses(overrides, None)
    assert ours == pytest.approx(whole, rel=1e-6)
    (summed, _), _ = losses(overrides, 1)
    assert summed == pytest.approx(whole * sum(length - PROMPT for length in LENGTHS), rel=1e-6)


def test_a_batch_without_trained_tokens_has_no_loss() -> None:
    """A filler that completes the last batch: the rank runs the same passes as the others."""
    hidden = torch.zeros(0, 8, requires_grad=True)
    loss = loss_chunked.summed_loss(hidden, torch.ones(4, 8), torch.zeros(0, dtype=torch.long))
    (3 * loss).backward()
    assert loss == 0 and hidden.grad is not None and hidden.grad.shape == (0, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_in_fp32_and_a_loss_scale_is_supported(dtype: torch.dtype) -> None:
    """fp16's initial scale is 65,536, which fp16 cannot represent. torch's own chunked loss supports neither."""
    generator = torch.Generator().manual_seed(0)
    weight = (0.05 * torch.randn(2000, 64, generator=generator)).to(dtype)
    states, targets = torch.randn(1000, 64, generator=generator), torch.randint(0, 2000, (1000,), generator=generator)

    def loss_and_gradient(loss_of: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = states.to(dtype).requires_grad_()
        loss = loss_of(hidden, weight, targets)
        (65536 * (loss / len(targets)).float()).backward()
        assert hidden.grad is not None
        return loss.detach(), hidden.grad.float()

    def whole_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")

    def loss_of_torch(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=32)
        own = torch.nn.functional.linear_cross_entropy
        return own(hidden, weight, targets, reduction="sum", options=options)

    (whole, expected), (ours, found), (torchs, theirs) = map(
        loss_and_gradient, (whole_loss, loss_chunked.summed_loss, loss_of_torch)
    )
    assert ours.dtype is torch.float32 and ours.item() == pytest.approx(whole.item(), rel=1e-5)
    assert (found - expected).norm() <= 5e-3 * expected.norm()
    if dtype is torch.float16:
        assert not theirs.isfinite().all()
    else:
        assert abs(torchs.item() / whole.item() - 1) > 1e-3


def test_logits_are_returned_outside_of_training() -> None:
    config = config_of("model=tiny", "quant=none", "kernels.loss=chunked")
    model = load_trainable(config)
    batch = batch_of(config, 99)
    with torch.no_grad():
        scored = model.eval()(**batch)
        assert scored.logits.shape[1] == sum(length - PROMPT for length in LENGTHS)
        assert scored.loss.item() == pytest.approx(model.train()(**batch).loss.item(), rel=1e-6)
        assert model(input_ids=batch["input_ids"]).logits.shape[1] == sum(LENGTHS)


def test_an_unknown_head_is_refused(tmp_path: Path) -> None:
    native = {"model_type": "gemma2", "vocab_size": 256000}
    (tmp_path / "config.json").write_text(json.dumps(native))
    config = config_of("model=tiny", "kernels.loss=chunked")
    config.model.path = str(tmp_path)
    with pytest.raises(ConfigError, match=r"gemma2.*use kernels\.loss=whole"):
        make_plan(config, 8)


def test_a_sharded_head_is_gathered_for_the_chunks(records: Path, tmp_path: Path) -> None:
    """Two steps under ZeRO-3 on two ranks with different numbers of trained tokens."""
    run = [
        "model=tiny", "quant=none", "zero=stage3", "zero.stage3_param_persistence_threshold=0", "cluster=1x2", "data.eval=null",
        f"data.train={records}", "train.max_steps=2", "train.log_every=1", "train.micro_batch_size=2", "optimizer.eps=1e-5",
        "train.gradient_accumulation_steps=2",
    ]  # fmt: skip
    assert len(RECORDS) >= 24
    chunks, whole = (train([*run, f"kernels.loss={kind}"], tmp_path / kind) for kind in ("chunked", "whole"))
    assert len(whole.losses) == 2
    assert chunks.losses == pytest.approx(whole.losses, rel=1e-5)
    assert chunks.grad_norms == pytest.approx(whole.grad_norms, rel=1e-5)
