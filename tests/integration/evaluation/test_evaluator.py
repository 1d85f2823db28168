"""The held-out loss is the mean over trained tokens, and any number of ranks finds what one rank finds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from conftest import config_of
from hydraft.config.choices import QuantKind
from hydraft.config.schema import QuantConfig
from hydraft.data import mixture
from hydraft.data.labels import IGNORE
from hydraft.evaluation.evaluator import HeldOut, answers
from hydraft.models.load import load_base, load_tokenizer

COUNTS = (1, 7, 33, 65)  # of records: none is a multiple of 2 ranks, and answers come in batches of 32


def find(rank: int, world: int, folder: Path) -> None:
    """One rank: score the first records that ship with the project, and leave what was found in ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    config = config_of("data.eval_max_new_tokens=8")
    model = load_base(config.model, QuantConfig(QuantKind.none), config.train.precision)
    if world == 2:  # what a checkpoint recommends (generation_config.json) has no say in scores
        model.generation_config.repetition_penalty = 5.0
    tokenizer, device = load_tokenizer(config.model), torch.device("cpu")
    found: list[Any] = []
    training: list[bool] = []  # the model's mode in each forward pass
    model.register_forward_pre_hook(lambda module, _: training.append(module.training))
    for count in COUNTS:
        conversations = mixture.held_out(config.data)[:count]
        held_out = HeldOut(conversations, tokenizer, config.data, device, micro_batch_size=4)
        told: list[int] = []
        model.train()
        scores = held_out.score(model, told.append)
        assert model.training and not any(training)  # dropout is off while scores are taken, and on again
        assert sum(told) == held_out.parts() == count
        model.eval()
        found.append([scores, answers(model, tokenizer, conversations, config.data, device, held_out.at_once)])
    if world == 1:
        found.append(by_the_formula(model, held_out))
    (folder / f"{world}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@torch.no_grad()
def by_the_formula(model: torch.nn.Module, held_out: HeldOut) -> float:
    """The mean of -log p over every trained token, a record at a time."""
    model.eval()
    total, tokens = 0.0, 0
    for example in held_out.examples:
        log_p = model(input_ids=torch.tensor([example["input_ids"]])).logits[0].log_softmax(-1)
        for position, label in enumerate(example["labels"]):
            if label != IGNORE:
                total -= float(log_p[position - 1, label])
                tokens += 1
    return total / tokens


def test_two_ranks_find_exactly_what_one_finds(tmp_path: Path) -> None:
    for world in (1, 2):
        mp.spawn(find, (world, tmp_path), nprocs=world)
    alone, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    formula = alone.pop()
    assert alone == first == second
    assert alone[-1][0]["loss"] == pytest.approx(formula, rel=1e-6)
    texts = alone[-1][1]
    assert len(texts) == COUNTS[-1] and len(set(texts)) > COUNTS[-1] / 2  # each record has an answer of its own
