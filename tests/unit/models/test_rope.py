"""Scaled rotary positions: the logits of transformers' own model with the same config, and models that have none to scale."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import stored
from conftest import config_of
from hydraft.config.choices import Precision
from hydraft.errors import ConfigError
from hydraft.models import prepare, rope, shapes
from hydraft.models.load import load_base

SMALL = "model.init=random model.scale=tiny quant=none train.precision=fp32"
FACTOR = "model.rope_factor=4"


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("model=qwen model.size=3-0.6b", "yarn"),
        ("model=qwen model.size=3-0.6b", "dynamic"),
        ("model=chatglm2", "yarn"),  # half of each head has positions
        ("model=baichuan2 model.size=7b-chat", "linear"),
        ("model=qwen model.size=3.5-0.8b", "yarn"),
    ],
)
def test_logits_are_those_of_transformers(model: str, kind: str) -> None:
    config = config_of(*model.split(), *SMALL.split(), f"model.rope={kind}", FACTOR)
    ready = prepare.native(config.model, config.seed)
    ours = load_base(ready, config.quant, Precision.fp32).eval()
    own = AutoConfig.from_pretrained(ready.path)
    length, parameters = own.max_position_embeddings, {**own.rope_parameters, "rope_type": kind, "factor": 4.0}
    more = {} if kind == "dynamic" else {"max_position_embeddings": 4 * length}
    if kind == "yarn":
        parameters["original_max_position_embeddings"] = length
    theirs = AutoModelForCausalLM.from_pretrained(ready.path, rope_parameters=parameters, dtype=torch.float32, **more)
    unscaled = AutoModelForCausalLM.from_pretrained(ready.path, dtype=torch.float32)
    ids = torch.randint(9, 300, (1, 64), generator=torch.Generator().manual_seed(0))
    places = torch.arange(64)[None] + length - 8  # across the original length
    with torch.no_grad():
        found, expected, other = (one.eval()(ids, position_ids=places).logits for one in (ours, theirs, unscaled))
    assert torch.equal(found, expected)
    assert not torch.allclose(found, other, atol=0, rtol=1e-6)
    planned = shapes.planned_config(config.model)
    assert planned is not None
    assert (planned["rope_parameters"]["rope_type"], planned["max_position_embeddings"]) == (
        kind,
        ours.config.max_position_embeddings,
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("model=baichuan2 model.size=13b-chat", "has no rotary positions to scale"),  # ALiBi
        ("model=llama3", r"scales its rotary positions already \(rope_type=llama3, for 131,072 tokens\)"),
    ],
)
def test_a_model_without_plain_rotary_positions_is_refused(model: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"model.rope=yarn: .*{message}"):
        config_of(*model.split(), *SMALL.split(), "model.rope=yarn", FACTOR)


def test_a_trained_model_is_not_scaled_twice(tmp_path: Path) -> None:
    """A fully fine-tuned one, which has its positions in its own config.json, and the section of its run."""
    base = stored.plain(tmp_path / "base")
    config = config_of(
        "model=auto", f"model.path={base}", "quant=none", "train.precision=fp32", "model.rope=linear", FACTOR
    )
    scaled = load_base(config.model, config.quant, Precision.fp32)
    scaled.save_pretrained(tmp_path / "trained")
    again = load_base(dataclasses.replace(config.model, path=str(tmp_path / "trained")), config.quant, Precision.fp32)
    assert again.config.rope_parameters == scaled.config.rope_parameters
    assert again.config.max_position_embeddings == scaled.config.max_position_embeddings


@pytest.mark.parametrize(
    ("overrides", "longest", "expected"),
    [
        ("model=qwen model.size=3-8b", 40960, None),
        ("model=qwen model.size=3-8b", 100_000, "up to 40,960 tokens: give at most that, or model.rope=yarn model.rope_factor=3"),
        ("model=qwen model.size=3-8b model.rope=yarn model.rope_factor=4", 100_000, None),
        ("model=qwen model.size=3-8b model.rope=dynamic model.rope_factor=2", 100_000, "up to 81,920 .* model.rope=dynamic model.rope_factor=3"),
        ("model=llama3", 200_000, "up to 131,072 tokens: give at most that$"),
    ],
)  # fmt: skip
def test_a_line_names_records_that_are_too_long(overrides: str, longest: int, expected: str | None) -> None:
    config = config_of(*overrides.split(), "quant=none")
    lines = rope.notes(config.model, longest, shapes.planned_config(config.model) or {})
    assert len(lines) == (expected is not None)
    if expected is not None:
        assert re.search(expected, lines[0])
