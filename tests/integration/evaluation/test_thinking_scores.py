"""A model with Qwen3's template is trained and scored, with thoughts and without: what it is asked at the end is what it was trained on."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from templates import templated
from transformers import Qwen3Config, Qwen3ForCausalLM

from conftest import config_of
from hydraft.config.choices import Thinking
from hydraft.config.objective import ObjectiveConfig
from hydraft.data import thinking
from hydraft.data.batch import Padded
from hydraft.data.records import Conversation, Turn
from hydraft.data.tokenize import encode_one
from hydraft.evaluation.batches import BatchSizes
from hydraft.evaluation.evaluator import Evaluator
from hydraft.training.objectives.registry import make_objective

RECORDS = [
    Conversation((Turn("user", question), Turn("assistant", answer, reasoning=thoughts)))
    for question, thoughts, answer in (
        ("三加四", "先数三，再数四", "七"), ("二加二", "两个二", "四"), ("天空", "抬头看", "蓝色"), ("草地", "低头看", "绿色"),
    )
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained(records: list[Conversation], tokenizer: Any, data: Any) -> Any:
    """A model of two layers that has learnt the records by heart."""
    torch.manual_seed(0)
    shape = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = Qwen3ForCausalLM(shape)
    examples = [example for record in records for example in encode_one(record, tokenizer, data)]
    batch = Padded(int(tokenizer.pad_token_id))([[example] for example in examples])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(45):
        loss = model(**{key: batch[key] for key in ("input_ids", "attention_mask", "labels")}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def scores(records: list[Conversation], tokenizer: Any, data: Any, model: Any) -> tuple[Evaluator, dict[str, float]]:
    sizes = BatchSizes.of(data, 4)
    evaluator = Evaluator(list(records), tokenizer, data, torch.device("cpu"), sizes, make_objective(ObjectiveConfig()))
    return evaluator, evaluator.evaluate(model, lambda _: None)


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1_distill"])
@pytest.mark.parametrize("mode", [Thinking.on, Thinking.off])
def test_a_trained_model_is_scored_by_its_answers(name: str, mode: Thinking) -> None:
    tokenizer = templated(name, "<|endoftext|>" if name == "qwen3" else None)  # as Qwen3's base models end texts
    records = (
        RECORDS
        if mode is Thinking.on
        else [replace(r, turns=(r.turns[0], replace(r.turns[1], reasoning=""))) for r in RECORDS]
    )
    data = thinking.resolve(replace(config_of().data, eval_max_new_tokens=48), records)
    assert data.thinking is mode
    model = trained(records, tokenizer, data)
    evaluator, found = scores(records, tokenizer, data, model)
    assert found["exact_match"] == 1 and found["empty"] == 0 and evaluator.unfinished == 0
    if mode is Thinking.on:  # too few tokens for the thoughts
        evaluator, found = scores(records, tokenizer, replace(data, eval_max_new_tokens=3), model)
        assert found["empty"] == 1 and evaluator.unfinished == len(records)
