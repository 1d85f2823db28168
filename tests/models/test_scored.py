"""The loss that a model is scored by: transformers' own on padded batches, without ever all logits."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from models.test_families import FAMILIES
from plan.test_activations import Live

from conftest import config_of
from hydraft import loss, prepare
from hydraft.data.batch import Padded
from hydraft.data.encode import IGNORE, Example
from hydraft.models import scored
from hydraft.models.load import load_trainable

LENGTHS, PROMPT = (9, 30, 21), 5
"""Tokens of three documents, and how many at each one's beginning are not trained."""


def examples_of(vocabulary: int, lengths: tuple[int, ...] = LENGTHS, prompt: int = PROMPT) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(9, vocabulary, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": row, "labels": [IGNORE] * prompt + row[prompt:]} for row in rows]


def loaded(*overrides: str) -> Any:
    """What a run of ``overrides`` trains, its adapter doing something, in eval mode."""
    config = config_of(*overrides)
    model = load_trainable(dataclasses.replace(config, model=prepare.native(config.model, config.seed)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    return model.eval()


def ours(model: Any, examples: list[Example], rows: int, extra: int = 0) -> float:
    """The mean, ``rows`` at a time, in the company of a rank that takes ``extra`` chunks more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "ROWS", rows)
        found, tokens = scored.summed_loss(
            model, Padded(0)([[one] for one in examples]), scored.chunks_of(examples) + extra
        )
    return float(found) / tokens


@torch.no_grad()
def theirs(model: Any, examples: list[Example]) -> float:
    return float(model(**Padded(0)([[one] for one in examples])).loss)


TINY = "model.init=random model.scale=tiny"
CASES = {
    **{family: f"{overrides} {TINY} quant=none" for family, overrides in FAMILIES.items()},
    "in chunks in training too": "model=tiny quant=none kernels.loss=chunked",
    "an adapter on the head": "model=tiny quant=none lora.target_modules=[q_proj,lm_head]",
    "full": "model=tiny quant=none lora=none",
    "nf4": "model=tiny quant=nf4",
    "int8": "model=tiny quant=int8",
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_loss_of_transformers(case: str) -> None:
    model = loaded(*CASES[case].split())
    examples = examples_of(model.config.vocab_size)
    expected = theirs(model, examples)
    for rows, extra in ((512, 0), (16, 0), (7, 2), (1, 0)):
        assert ours(model, examples, rows, extra) == pytest.approx(expected, rel=1e-6), rows
    assert theirs(model, examples) == expected  # the head is as it was


def test_the_company_of_other_ranks_changes_no_bit() -> None:
    model = loaded("model=tiny", "quant=none")
    examples = examples_of(99)
    assert ours(model, examples, 16, 0) == ours(model, examples, 16, 5)


@pytest.mark.parametrize("keeps", [True, False])
def test_logits_that_are_more_than_the_heads_output_are_the_models_own(
    keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of which it is not known that its head is plain: it caps its logits (as Gemma 2 does)."""
    model = loaded("model=tiny", "quant=none", "lora=none")
    whole = model.forward
    asked: list[Any] = []

    def capped(input_ids: Any = None, attention_mask: Any = None, logits_to_keep: Any = 0) -> Any:
        output = whole(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=logits_to_keep)
        asked.append(logits_to_keep)
        output.logits = 2 * torch.tanh(output.logits / 2)
        return output

    model.forward = capped if keeps else lambda input_ids, attention_mask: capped(input_ids, attention_mask)
    model.config.model_type = "gemma2"
    examples = examples_of(99)
    batch = Padded(0)([[one] for one in examples])
    labels = batch.pop("labels")
    logits = capped(**batch).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
    for rows in (512, 16):
        assert ours(model, examples, rows) == pytest.approx(float(expected), rel=1e-6)
    assert isinstance(asked[-1], torch.Tensor) == keeps
    if keeps:
        assert len(asked[-1]) == max(LENGTHS) - PROMPT  # the columns of any record's trained tokens


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model whose vocabulary is large beside all else."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide")
    shape = LlamaConfig(
        vocab_size=8192, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    yield folder


def test_all_logits_are_never_there(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most that is there at once does not grow with the number of tokens, hidden states apart."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(wide).eval()
    model.config.use_cache = False
    monkeypatch.setattr(loss, "ROWS", 64)

    def most(length: int) -> int:
        examples = examples_of(8192, (length,) * 4)
        batch = Padded(0)([[one] for one in examples])
        with Live() as live:
            scored.summed_loss(model, batch, scored.chunks_of(examples))
        return live.most

    chunk = 64 * 8192 * 8  # logits and log-probabilities in fp32
    short, long = most(64), most(256)
    assert 0.9 * chunk < short < 1.1 * chunk
    assert long - short < 0.1 * (256 - 64) * 4 * 8192 * 4
