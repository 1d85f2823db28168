"""The plan of the quantised copy's size, compared with the files."""

import dataclasses
from pathlib import Path

import pytest

from conftest import config_of
from hydraft.config.choices import Precision
from hydraft.models import prepare, quantise, shapes
from hydraft.models.quantised_copy import Job
from hydraft.plan.disk import disk
from hydraft.plan.parameters import layout, trained

HEADERS = 3000
"""Bytes of a layer for names, shapes and types."""


@pytest.mark.parametrize("precision", [Precision.bf16, Precision.fp32])
def test_the_size_of_a_copy(precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path))
    config = config_of("model=qwen", "model.size=2.5-0.5b", "model.init=random", "model.scale=tiny", "quant=nf4")
    model = dataclasses.replace(config.model, dtype=Precision.auto, cache_quantised=True)
    config = dataclasses.replace(config, model=model, train=dataclasses.replace(config.train, precision=precision))
    native = shapes.planned_config(model)
    assert native is not None
    known = layout(native)
    assert known is not None
    planned = disk(config, known, trained(known, config.lora)).quantised
    (copy := tmp_path / "copy").mkdir()
    base = prepare.native(model, config.seed).path
    quantise.write(Job(base, base, str(copy), config.quant.double_quant, precision.value), lambda **event: None)
    found = sum(file.stat().st_size for file in copy.glob("*.safetensors"))
    linears = sum(tensor.linear for tensor in known.tensors)
    assert planned <= found <= planned + linears * HEADERS
    for other in ("auto", False):
        model = dataclasses.replace(model, cache_quantised=other)
        assert disk(dataclasses.replace(config, model=model), known, trained(known, config.lora)).quantised == 0
