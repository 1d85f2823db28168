"""Objectives: supervised fine-tuning counts tokens as the Trainer does; each objective has its own cache and plan."""

import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Trainer

from conftest import ROOT, config_of
from hydraft.config.objective import REQUIREMENTS, ObjectiveConfig, ObjectiveKind
from hydraft.data import cache
from hydraft.data.batch import Padded, PaddingFree
from hydraft.data.encoding import SFT, Encoding
from hydraft.data.labels import IGNORE
from hydraft.plan import plan
from hydraft.sweep.results.ledger import key_of
from hydraft.system.hardware import Hardware
from hydraft.training.objectives.registry import OBJECTIVES, make_objective

ITEMS: list[Any] = [
    [{"input_ids": [5, 6, 7], "labels": [IGNORE, 6, 7]}],
    [{"input_ids": [5, 6], "labels": [IGNORE, 6]}],
]


def test_every_kind_has_an_objective_and_requirements() -> None:
    assert OBJECTIVES.keys() == REQUIREMENTS.keys() == set(ObjectiveKind)


@pytest.mark.parametrize("collate", [Padded(0), PaddingFree()], ids=["padded", "padding-free"])
def test_trained_tokens_are_counted_as_the_trainer_counts_them(collate: Any) -> None:
    batch = collate(ITEMS)
    trainer: Any = object.__new__(Trainer)
    trainer.model_accepts_loss_kwargs, trainer.compute_loss_func, trainer._loss_shifts_labels = True, None, True
    trainer.args = SimpleNamespace(average_tokens_across_devices=True, world_size=1, n_gpu=0)
    trainer.accelerator = SimpleNamespace(parallelism_config=None)
    expected = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    assert make_objective(ObjectiveConfig()).count(batch) == expected == 3


def test_another_encoding_has_another_cache_key() -> None:
    data = config_of().data
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "src/hydraft/models/tiny")
    assert cache.key(data, 0, tokenizer) == cache.key(data, 0, tokenizer, SFT)
    assert cache.key(data, 0, tokenizer, Encoding(sequences=2, name="pairs")) != cache.key(data, 0, tokenizer)


def test_the_default_objective_is_not_part_of_a_jobs_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of sweeps from before this section existed keep their identity."""
    import hydraft.sweep.results.ledger as ledger

    config = config_of("lora.r=3")
    monkeypatch.setattr(ledger, "saved", lambda config, leave_out, earlier: str(list(leave_out)))
    default = key_of(config)
    config.objective.kind = None  # type: ignore[assignment]
    assert key_of(config) != default


def test_the_plan_counts_both_sequences_of_a_pair_and_no_second_model() -> None:
    def planned(*overrides: str) -> Any:
        config = config_of("train.precision=fp32", "quant=none", "train.micro_batch_size=4", *overrides)
        cost = plan.make_plan(config, 24, Hardware(cpus=2, memory=64 << 30)).cost
        assert cost is not None
        return cost.memory.host_training

    alone, pairs = planned(), planned("objective=dpo")
    assert pairs.activations > 1.8 * alone.activations and pairs.weights == alone.weights
    assert planned("lora=none", "objective=dpo").weights == planned("lora=none").weights


def test_no_objective_imports_torch() -> None:
    """``train.py`` reads records with the objective before torch is imported."""
    code = "import sys, hydraft.training.objectives.registry; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "src")})


def test_the_loss_is_that_of_the_model() -> None:
    received: dict[str, Any] = {}

    def model(**inputs: Any) -> dict[str, torch.Tensor]:
        received.update(inputs)
        return {"loss": torch.tensor(2.0)}

    objective: Any = make_objective(ObjectiveConfig())
    assert objective.loss(model, {"input_ids": 1}, torch.tensor(3)).value == 2
    assert received["num_items_in_batch"] == 3
    received.clear()
    objective.loss(model, {"input_ids": 1}, None)
    assert received == {"input_ids": 1}


def test_a_card_has_the_settings_that_an_objective_reads() -> None:
    simpo = config_of("objective=simpo", "objective.gamma=0.5").objective
    assert simpo.described == "simpo, beta 2.0, gamma 0.5, sft_weight 0.0" and not simpo.unread
    assert config_of("objective=orpo").objective.sft_weight == 1 and config_of().objective.described == "sft"


def test_a_filler_has_no_part_in_the_loss() -> None:
    """Of a micro-batch whose rows are filled up: the mean is over its pairs, and ORPO's odds of no token are not its odds."""
    for kind in ("dpo", "ipo", "orpo", "simpo"):
        objective: Any = make_objective(config_of(f"objective={kind}").objective)
        values = torch.tensor([-3.0, -4.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
        objective.documents = lambda *_, v=values: (v, torch.tensor([2, 3, 0, 0]), torch.tensor([0, 1, -1, -1]))
        objective.reference = torch.tensor([-3.5, -3.5], dtype=torch.float64)
        found = objective.loss(None, {"index": torch.tensor([0, 1, -1, -1])}, None)
        (gradient,) = torch.autograd.grad(found.value, values)
        assert torch.isfinite(found.value) and torch.isfinite(gradient[:2]).all()
        assert found.sums[:, 1].tolist() == [1.0] * 5 and torch.isfinite(found.sums).all()


def test_the_loss_without_a_preference_is_known() -> None:
    """By it a diverged first step is told from one of a large loss (IPO's is 25 with its default beta)."""
    known = {"sft": math.log(100), "dpo": math.log(2), "ipo": 25, "simpo": math.log(1 + math.e), "kto": 0.5}
    known["orpo"] = 0.1 * math.log(2) + math.log(100)
    for kind, loss in known.items():
        assert make_objective(config_of(f"objective={kind}").objective).uninformed(100) == pytest.approx(loss)
