"""Answers after a prompt that is computed once have the log-likelihoods of rows with the whole prompt and the answer."""

import dataclasses
from typing import Any

import pytest
import torch

from conftest import config_of
from families import WITH_ALIBI
from hydraft.config.choices import QuantKind
from hydraft.config.schema import QuantConfig
from hydraft.models import prepare, shared_prompt
from hydraft.models.load import load_base

PROMPTS = (3, 17, 9)
ANSWERS = (4, 1, 2)
"""Tokens of the answers to each prompt; one has a single token."""


def model_of(overrides: str) -> Any:
    config = config_of(
        *overrides.split(), "model.init=random", "model.scale=tiny", "quant=none", "train.precision=fp32"
    )
    native = prepare.native(config.model, config.seed)
    config = dataclasses.replace(config, model=native)
    return load_base(config.model, QuantConfig(QuantKind.none), config.train.precision).eval()


def drawn(count: int, vocabulary: int, seed: int) -> list[int]:
    return torch.randint(9, vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("family", WITH_ALIBI)
@torch.no_grad()
def test_likelihoods_are_those_of_whole_rows(family: str) -> None:
    model = model_of(WITH_ALIBI[family])
    assert shared_prompt.is_supported(model)
    size = model.config.vocab_size
    prompts = [drawn(count, size, count) for count in PROMPTS]
    answers = [[drawn(count, size, 100 * i + count) for count in ANSWERS] for i in range(len(prompts))]
    found = shared_prompt.log_likelihoods(model, prompts, answers, 0, torch.device("cpu"))
    assert found.shape == (len(PROMPTS), len(ANSWERS))
    for i, prompt in enumerate(prompts):
        for k, answer in enumerate(answers[i]):
            log_p = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            expected = sum(float(log_p[len(prompt) + at - 1, token]) for at, token in enumerate(answer))
            assert float(found[i, k]) == pytest.approx(expected, rel=1e-5), (i, k)


def test_a_model_with_a_recurrent_state_computes_whole_rows() -> None:
    assert not shared_prompt.is_supported(model_of("model=qwen model.size=3.5-0.8b"))
