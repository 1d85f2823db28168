"""Answers in a shared batch of models whose attention has windows, capped scores or sinks; others are refused."""

import asyncio
from typing import Any

import pytest
import torch

from bench.architectures import WINDOW, small_model
from conftest import SCALE
from hydraft.config.serve import ServeConfig
from hydraft.errors import ConfigError
from hydraft.infer.serve import multi_lora
from hydraft.infer.serve.engine import Answer, Engine
from hydraft.infer.serve.sampler import Sampling

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18], [19]]
"""One is longer than the window of ``WINDOW`` tokens."""
NEW = 2 * WINDOW


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "gemma2", "gpt_oss"])
def test_greedy_answers_in_one_batch_equal_those_of_eager_attention(model_type: str) -> None:
    model = small_model(model_type)
    settings: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    model.set_attn_implementation("eager")
    with torch.no_grad():
        alone = [model.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist() for prompt in PROMPTS]
    serve = ServeConfig(cache_tokens=1024, batch_tokens=8)  # prompts are computed in parts
    engine = Engine(model, 96, serve)
    engine.start()

    async def all_at_once() -> list[list[int]]:
        answers = [Answer(prompt, NEW, [-1], multi_lora.BASE, Sampling(temperature=0)) for prompt in PROMPTS]
        engine.submit(answers)
        return [[token async for new in answer.chunks() for token in new] for answer in answers]

    try:
        assert asyncio.run(asyncio.wait_for(all_at_once(), 60 * SCALE)) == alone
    finally:
        engine.stop()


@pytest.mark.parametrize(
    ("model_type", "reason"), [("qwen3_5_text", "linear_attention layers"), ("nemotron", "hand its options on")]
)
def test_a_model_that_does_not_keep_answers_apart_is_refused(model_type: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"mode=serve: .*{reason}: use mode=batch"):
        Engine(small_model(model_type), 96, ServeConfig())
