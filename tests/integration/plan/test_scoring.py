"""Memory of evaluation: the plan's figures compared with the peak on a CPU, and batches that fit if training fits."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from conftest import config_of, run_script
from families import FAMILIES, WITH_ALIBI
from hydraft.config.schema import Config
from hydraft.data.batch import Padded
from hydraft.evaluation.batches import BatchSizes
from hydraft.models import generation, loss_scored, shared_prompt
from hydraft.models.quant import DTYPES
from hydraft.models.shapes import planned_config
from hydraft.plan import scoring
from hydraft.plan.parameters import Layout, layout, trained
from hydraft.plan.plan import generation_memory, make_plan, planned_for
from hydraft.plan.weights import WIDTH
from hydraft.system.hardware import Gpu, Hardware
from integration.models.test_loss_scored import examples_of, loaded
from unit.plan.test_activations import Live
from unit.plan.test_memory import priced

LENGTHS = (256, 255, 255, 250)
NEW, PROMPT, COUNT, LABEL = 32, 64, 32, 4
CASES = [(family, precision) for family in FAMILIES for precision in ("fp32", "bf16")]


def made(family: str, precision: str) -> tuple[Config, Layout, Any]:
    """A tiny model of the family as it is evaluated, in its compute type."""
    overrides = [
        *WITH_ALIBI[family].split(), "model.init=random", "model.scale=tiny", "quant=none", f"train.precision={precision}",
        f"data.max_length={max(LENGTHS)}", f"train.micro_batch_size={len(LENGTHS)}", f"data.eval_max_new_tokens={NEW}",
    ]  # fmt: skip
    config, model = config_of(*overrides), loaded(*overrides)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[config.train.precision])
    known = layout(planned_config(config.model) or {})
    assert known is not None
    return config, known, model


@pytest.mark.parametrize(("family", "precision"), [*CASES, ("alibi", "fp32")])
@torch.no_grad()
def test_the_peak_of_a_batchs_loss_is_that_of_the_plan(family: str, precision: str) -> None:
    config, known, model = made(family, precision)
    layer, head = scoring.losses(config, known, trained(known, config.lora), WIDTH[config.train.precision])
    examples = examples_of(known.vocabulary, LENGTHS)
    batch = Padded(0)([[one] for one in examples])
    with Live() as whole:
        loss_scored.summed_loss(model, batch, loss_scored.chunks_of(examples))
    with Live() as body:
        model.get_base_model().model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert head.total > layer.total
    assert head.total == pytest.approx(whole.most, rel=0.05)
    assert layer.total == pytest.approx(body.most, rel=0.1)
    assert whole.most < batch["input_ids"].numel() * known.vocabulary * 8  # all logits, and their log-softmax


@pytest.mark.parametrize(("family", "precision"), [*CASES, ("alibi", "bf16")])
@torch.no_grad()
def test_the_peak_of_generating_answers_is_that_of_the_plan(family: str, precision: str) -> None:
    config, known, model = made(family, precision)
    ids = torch.randint(9, 99, (COUNT, PROMPT), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1:, :3] = 0
    cache = DynamicCache()
    settings = GenerationConfig(
        max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=[1], use_cache=True
    )
    seen: list[int] = []  # tokens whose logits are computed
    model.get_base_model().lm_head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    with Live() as live, generation.greedy(model.get_base_model()):
        model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, past_key_values=cache)
    assert seen == [1] * NEW
    room = generation_memory(config)
    assert room is not None
    one = room.answer(PROMPT)
    assert -0.05 <= COUNT * one.total / live.most - 1 <= 0.2
    peak = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)  # type: ignore[union-attr]
    tokens = PROMPT + NEW - 1  # the last token is not fed back
    width = WIDTH[config.train.precision]
    assert peak == COUNT * tokens * known.layers * (2 * known.key + known.features(width)) * width
    assert one.cache <= peak / COUNT * (tokens + 1) / tokens


@pytest.mark.parametrize(("family", "precision"), [("llama3", "fp32"), ("qwen3", "bf16"), ("alibi", "fp32")])
def test_the_peak_of_choosing_labels_is_that_of_the_plan(family: str, precision: str) -> None:
    config, _, model = made(family, precision)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(9, 99, (COUNT, PROMPT), generator=generator).tolist()
    labels = torch.randint(9, 99, (COUNT, 2, LABEL), generator=generator).tolist()
    with Live() as live:
        shared_prompt.log_likelihoods(model, prompts, labels, 0, torch.device("cpu"))
    room = generation_memory(config)
    assert room is not None
    assert -0.05 <= COUNT * room.row(PROMPT, LABEL).total / live.most - 1 <= 0.3


def test_a_batch_of_labels_needs_no_more_memory_than_training() -> None:
    room = generation_memory(config_of("model=llama3", "mode=plan", "train.precision=bf16", "data.max_length=4096"))
    assert room is not None
    for length in (16, 1000, 4096):
        count = room.rows(length, LABEL)
        assert count == scoring.MOST or count * room.row(length, LABEL).total <= room.bytes
    labelled = config_of("data.labels=['正面','负面']").data
    assert scoring.label_tokens(labelled) == len("正面".encode()) + 1
    assert scoring.label_tokens(config_of().data) == 0


def test_a_batch_of_answers_needs_no_more_memory_than_training() -> None:
    """32 records of Llama-3 with 8,192 tokens each would need 34 GB for keys and values alone."""
    cards = ["mode=plan", "train.precision=bf16", "train.micro_batch_size=2", "data.eval_max_new_tokens=256"]

    def room_of(*overrides: str) -> scoring.GenerationMemory:
        room = generation_memory(config_of("model=llama3", *cards, *overrides))
        assert room is not None
        return room

    room = room_of("data.max_length=8192", "train.gradient_checkpointing=true")
    assert 32 * room.answer(8192).cache > 34e9
    for prompt in (16, 100, 1000, 4000, 8192):
        count = room.records(prompt)
        assert count == scoring.MOST or count * room.answer(prompt).total <= room.bytes
        assert count * room.answer(prompt).total <= room.most(8192).total <= room.bytes
    assert 1 <= room.records(8192) < 16 and room.records(16) == scoring.MOST
    small = dataclasses.replace(room, bytes=1)
    assert small.records(8192) == 1 and small.most(8192) == small.answer(8192)


def test_batches_of_answers_are_limited_by_tokens_and_have_every_record() -> None:
    from hydraft.evaluation.batches import chunks

    lengths = [50, 3, 700, 20, 700, 4, 90, 5]
    found = chunks(lengths, lambda longest: max(1, 100 // longest))
    assert sorted(index for chunk in found for index in chunk) == list(range(len(lengths)))
    assert [[lengths[index] for index in chunk] for chunk in found] == [[3, 4, 5, 20], [50], [90], [700], [700]]


def test_without_a_plan_a_batch_of_answers_has_the_tokens_of_a_micro_batch() -> None:
    sizes = BatchSizes.of(config_of("data.max_length=512", "data.eval_max_new_tokens=64").data, 4)
    assert [sizes.answers(prompt) for prompt in (1, 448, 512, 10_000)] == [31, 4, 3, 1]


def test_scoring_is_a_separate_phase() -> None:
    here = ["data.max_length=8192", "train.micro_batch_size=1", "train.gradient_checkpointing=true"]
    made_, without = priced(*here), priced(*here, "data.eval=null")
    assert without.scoring.total == without.host_scoring.total == 0
    assert made_.training == without.training
    parts = made_.scoring
    assert (parts.weights, parts.optimizer) == (made_.training.weights, made_.training.optimizer)
    assert parts.cache > 1 << 29 and parts.logits > 0  # a record of 8,192 tokens at 128 KiB each
    assert made_.peak == max(made_.loading.total, made_.training.total, parts.total)


def test_the_memory_of_scoring_decides_whether_a_run_fits() -> None:
    """With short training records and long answers, evaluation needs more than training."""
    overrides = [
        "model=llama3", "mode=plan", "train.precision=bf16", "data.max_length=64", "train.micro_batch_size=1",
        "data.eval_max_new_tokens=65536", "cluster.gpu_memory=80GiB",
    ]  # fmt: skip
    config = config_of(*overrides)
    cost = make_plan(config, 100, planned_for(config, Hardware(cpus=2))).cost
    assert cost is not None
    assert cost.memory.peak == cost.memory.scoring.total > cost.memory.training.total + (1 << 32)
    card = (cost.memory.training.total + cost.memory.scoring.total) // 2
    machine = Hardware(gpus=(Gpu("card", card, 8.6),))
    assert make_plan(config, 100, machine).fits is False
    config.data.eval = None
    assert make_plan(config, 100, machine).fits is True


def test_the_memory_of_scoring_is_printed_and_saved() -> None:
    arguments = ("mode=plan", "model=llama3", "cluster.gpu_memory=24GiB", "data.eval_max_new_tokens=8192")
    done = run_script("train.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert any(line.startswith("scoring ") for line in done.stdout.splitlines())
    assert "KV cache" in done.stdout
    done = run_script("train.py", *arguments, "data.eval=null")
    assert done.returncode == 0 and "scoring" not in done.stdout
    config = config_of(*arguments)
    found = json.loads(json.dumps(make_plan(config, 100, planned_for(config, Hardware(cpus=2))).to_dict()))
    assert found["cost"]["memory"]["scoring"]["cache"] > 0
