"""The held-out loss is the mean over trained tokens, and scores do not depend on the number of ranks."""

from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import torch.distributed as dist

from conftest import config_of
from forks import run_forks
from hydraft.config.choices import QuantKind
from hydraft.config.objective import ObjectiveConfig
from hydraft.config.schema import QuantConfig
from hydraft.data import mixture
from hydraft.data.labels import IGNORE
from hydraft.evaluation.batches import BatchSizes
from hydraft.evaluation.evaluator import Evaluator
from hydraft.models.load import load_base, load_tokenizer
from hydraft.training.objectives.registry import make_objective

COUNTS = (1, 7, 33, 65)  # of records: none is a multiple of 2 ranks, and answers come in batches of 32


def find(world: int) -> list[Any]:
    """One rank: the scores of the first records that ship with the project."""
    torch.set_num_threads(1)
    config = config_of("data.eval_max_new_tokens=8")
    model = load_base(config.model, QuantConfig(QuantKind.none), config.train.precision)
    if world == 2:  # what a checkpoint recommends (generation_config.json) has no say in scores
        model.generation_config.repetition_penalty = 5.0
    tokenizer, device = load_tokenizer(config.model), torch.device("cpu")
    found: list[Any] = []
    training: list[bool] = []  # the model's mode in each forward pass
    model.register_forward_pre_hook(lambda module, _: training.append(module.training))
    for count in COUNTS:
        records = mixture.held_out(config.data, config.seed)[:count]
        sizes, objective = BatchSizes.of(config.data, 4), make_objective(ObjectiveConfig())
        evaluator = Evaluator(records, tokenizer, config.data, device, sizes, objective)
        done: list[int] = []
        model.train()
        scores = evaluator.evaluate(model, done.append)
        assert model.training and not any(training)  # dropout is off while scores are taken, and on again
        assert sum(done) == evaluator.parts() == count
        model.eval()
        found.append([scores, evaluator.answers(model, lambda _: None), [asdict(one) for one in evaluator.by_record]])
    found.append(chosen_answers(model, tokenizer))
    if world == 1:
        found.append(by_the_formula(model, evaluator))  # of each record
    return found


def chosen_answers(model: Any, tokenizer: Any) -> list[Any]:
    """The scores of records of which some have a label as the answer, with the prompts of all labels computed once, and again."""
    config = config_of("data.eval_max_new_tokens=2", "data.labels=['正面','负面','不是正面']", "data.eval_limit=30")
    records = mixture.held_out(config.data, config.seed)
    sizes, objective = BatchSizes.of(config.data, 4), make_objective(ObjectiveConfig())
    evaluator = Evaluator(records, tokenizer, config.data, torch.device("cpu"), sizes, objective)
    assert 1 < len(evaluator.chosen) < len(records)
    done: list[int] = []
    scores = evaluator.evaluate(model, done.append)
    assert sum(done) == evaluator.parts()
    assert evaluator.found.keys() == set(range(len(records)))
    assert {"accuracy", "macro_f1", "sentiment_accuracy", "exact_match"} <= scores.keys()
    model.eval()
    shared = evaluator.labels.log_likelihoods(model, done.append)
    rows = evaluator.labels._of_rows(model, done.append)
    dist.all_reduce(rows)
    expected = [likelihood(model, row) for row in evaluator.labels.rows]
    for found in ([value for own in shared for value in own], rows.tolist()):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    for index, own in zip(evaluator.chosen, shared, strict=True):
        label = evaluator.labels.labels.index(records[index].conversations[0].reference)
        assert -own[label] == pytest.approx(evaluator.by_record[index].loss_sum, rel=1e-5)  # its loss with that answer
    return [scores, shared, rows.tolist(), [asdict(one) for one in evaluator.by_record], list(evaluator.found.values())]


@torch.no_grad()
def likelihood(model: Any, row: Any) -> float:
    """The sum of log p over the trained tokens of a row, from its logits."""
    log_p = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
    return sum(float(log_p[at - 1, token]) for at, token in enumerate(row["labels"]) if token != IGNORE)


@torch.no_grad()
def by_the_formula(model: torch.nn.Module, evaluator: Evaluator) -> list[tuple[float, int]]:
    """The sum of -log p over the trained tokens of each record, and their number."""
    model.eval()
    found = []
    for example in (item[0] for item in evaluator.items):
        total, tokens = 0.0, 0
        log_p = model(input_ids=torch.tensor([example["input_ids"]])).logits[0].log_softmax(-1)
        for position, label in enumerate(example["labels"]):
            if label != IGNORE:
                total -= float(log_p[position - 1, label])
                tokens += 1
        found.append((total, tokens))
    return found


def scores(world: int, folder: Path) -> list[Any]:
    """What each of ``world`` ranks finds."""
    folder.mkdir()
    return run_forks(lambda _: find(world), folder, world)


def test_two_ranks_get_exactly_the_scores_of_one(tmp_path: Path) -> None:
    (alone,), (first, second) = scores(1, tmp_path / "1"), scores(2, tmp_path / "2")
    formula = alone.pop()
    assert alone == first == second
    scores_of_all, texts, by_record = alone[-2]
    assert scores_of_all["loss"] == pytest.approx(
        sum(total for total, _ in formula) / sum(n for _, n in formula), rel=1e-6
    )
    for one, (total, tokens) in zip(by_record, formula, strict=True):
        assert one["loss_sum"] == pytest.approx(total, rel=1e-5) and one["tokens"] == tokens
    assert [one["index"] for one in by_record] == list(range(COUNTS[-1]))
    for name in ("exact_match", "empty"):
        assert scores_of_all[name] == fmean(one["scores"][name] for one in by_record)
    assert len(texts) == COUNTS[-1] and len(set(texts)) > COUNTS[-1] / 2  # each record has an answer of its own
