"""One entry per model family: every shipped model has what plan, kernels, loss and LoRA targets read."""

from dataclasses import replace
from importlib import import_module

import pytest
import yaml

from conftest import ROOT, config_of
from hydraft.config.choices import Kernels, TrackerKind
from hydraft.errors import ConfigError
from hydraft.models import shapes
from hydraft.models.families.native import FAMILIES
from hydraft.models.families.registry import (
    PUBLISHED,
    is_published_architecture,
    native_family,
    native_targets,
    shared_config,
)
from hydraft.plan.parameters import layout
from hydraft.tracking.factory import TRACKERS

ARCHITECTURES = {
    str(shape["architecture"])
    for file in (ROOT / "conf/model").glob("*.yaml")
    for shape in yaml.safe_load(file.read_text(encoding="utf-8")).get("sizes", {}).values()
}


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_every_shipped_architecture_has_a_family(architecture: str) -> None:
    assert native_family(shared_config(architecture)["model_type"]) is not None


def test_an_architecture_is_declared_once() -> None:
    declared = [name for family in FAMILIES.values() for name in family.architectures]
    published = [name for family in PUBLISHED for name in family.ARCHITECTURES]
    assert sorted([*declared, *published]) == sorted(ARCHITECTURES)
    assert [name for name in sorted(ARCHITECTURES) if is_published_architecture(name)] == sorted(published)


def test_an_unknown_architecture_is_refused() -> None:
    shape = config_of("model=llama3").model.shape
    assert shape is not None
    with pytest.raises(ConfigError, match=r"architecture=other is none of llama3\.1"):
        shapes.native_config(replace(shape, architecture="other"))


def test_a_new_family_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """With only an entry, the plan counts the model and translates its target names."""
    native = shared_config("qwen3") | {
        "model_type": "new", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 10,
    }  # fmt: skip
    assert layout(native) is None
    monkeypatch.setitem(FAMILIES, "new", replace(FAMILIES["qwen3"], lora_names={"in_proj": ("q_proj", "k_proj")}))
    counted = layout(native)
    assert counted is not None and counted.head_norms and counted.architecture == "new"
    assert native_targets(["in_proj"], (tensor.module for tensor in counted.tensors)) == ["q_proj", "k_proj"]


def test_kernels_match_the_families_that_the_libraries_support() -> None:
    assert all(Kernels.torch not in family.kernels for family in FAMILIES.values())


def test_every_tracker_has_a_class() -> None:
    assert set(TRACKERS) == set(TrackerKind)
    for target in TRACKERS.values():
        module, _, name = target.partition(":")
        assert isinstance(getattr(import_module(module), name), type)
