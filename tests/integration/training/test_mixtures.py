"""Runs of a mixture of experts: the same in every topology, held against plain transformers and peft, and used afterwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from bench.equivalence import TOLERANCE, Curve, apart, overrides_for, train, write_data
from families import MIXTURE
from hydraft.config.choices import Precision
from hydraft.config.infer import InferConfig
from hydraft.infer.export import compare, merge, native_layout
from hydraft.infer.load import load
from hydraft.infer.resolve import find
from hydraft.models import experts, prepare

MODEL = [
    *MIXTURE.split(),
    "model.init=random",
    "model.scale=tiny",
    "train.max_steps=4",
    "model.rope=yarn",
    "model.rope_factor=4",
]
RUNS = {
    "none": [("stage2", 2), ("stage3", 2)],
    "nf4": [("stage3", 2)],
}
"""Over two ranks, whose records are routed to different experts."""
PROMPTS = [[1, 5, 9, 300, 17, 4], [1, 40, 41, 42]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int, str], tuple[Path, Curve]]:
    """Trains once in each topology."""
    root, made = tmp_path_factory.mktemp("mixtures"), dict[tuple[str, int, str], tuple[Path, Curve]]()
    data = write_data(root)

    def trained(stage: str, ranks: int, quant: str) -> tuple[Path, Curve]:
        if (stage, ranks, quant) not in made:
            folder = root / f"{stage}-{ranks}-{quant}"
            made[stage, ranks, quant] = (
                folder,
                train([*overrides_for(stage, ranks, quant, "fp32", data), *MODEL], folder),
            )
        return made[stage, ranks, quant]

    return trained


@pytest.mark.parametrize(("quant", "stage", "ranks"), [(quant, *one) for quant, many in RUNS.items() for one in many])
def test_every_topology_trains_the_same(quant: str, stage: str, ranks: int, run: Any) -> None:
    _, reference = run("stage0", 1, quant)
    assert max(apart(run(stage, ranks, quant)[1], reference)) <= TOLERANCE["fp32"]


def test_an_export_of_quantised_experts_is_the_trained_model(run: Any, tmp_path: Path) -> None:
    """Of a run over two ranks; the merged checkpoint is loaded by transformers alone."""
    options = InferConfig(run=str(run("stage3", 2, "nf4")[0]))
    (source,) = find(options)
    trained = load([source], options).model
    assert any(experts.is_quantised(module) for module in trained.modules())
    section = prepare.native(source.model, source.seed)
    native_layout.write(
        merge.merged(trained, source, section, Precision.fp32), torch.float32, tmp_path, Console(quiet=True)
    )
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert compare.difference(compare.logits(trained, PROMPTS), compare.logits(plain, PROMPTS))["logit_max"] <= 1e-4
    assert plain.config.rope_parameters["rope_type"] == "yarn" and plain.config.rope_parameters["factor"] == 4
    assert plain.config.max_position_embeddings == 4 * 40960
    # An adapter on the published weights would be another model.
    base = AutoModelForCausalLM.from_pretrained(section.path, dtype=torch.float32)
    other = peft.PeftModel.from_pretrained(base, str(source.folder)).eval()
    assert compare.difference(compare.logits(trained, PROMPTS), compare.logits(other, PROMPTS))["logit_max"] > 1e-2
