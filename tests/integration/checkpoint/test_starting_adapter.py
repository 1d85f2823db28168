"""A run that starts from an adapter begins with its weights, to the bit, and with the outputs that peft gives them."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from conftest import config_of, run_ranks, run_script
from hydraft.checkpoint import starting_adapter
from hydraft.config.choices import ExportKind
from hydraft.config.schema import Config, load_config
from hydraft.errors import ConfigError
from hydraft.infer.export.model_card import card
from hydraft.infer.resolve import look
from hydraft.models import base_identity
from hydraft.models.load import load_base, load_trainable
from hydraft.runs import start
from hydraft.system.source_tree import TINY
from using import adapter

QUICK = ("data.eval_limit=4", "data.eval_max_new_tokens=8", "train.save_minutes=null")


@pytest.fixture
def group() -> Iterator[None]:
    """A process group with this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with an adapter of rank 4."""
    return adapter(tmp_path_factory.mktemp("made") / "first", "quant=none")


def settled(*overrides: str) -> Config:
    return start.settled(config_of(*overrides), overrides)[0]


def test_on_two_ranks_every_tensor_is_that_of_the_file(made: Path) -> None:
    kinds = ["zero=stage0 quant=none", "zero=stage1 quant=nf4", "zero=stage2 quant=none train.precision=bf16"]
    kinds += ["zero=stage3 quant=none", "zero=stage3 quant=nf4 train.precision=bf16"]
    found = run_ranks("tests/support/starting_rank.py", [f"lora.start={made} {kind}" for kind in kinds], 2)
    for kind, one in zip(kinds, found, strict=True):
        assert one["loaded"] == one["in the engine"] == one["sharded"] == [] and one["count"] == 56, (kind, one)
        assert one["shards"] == (56 if "stage3" in kind else 0), (kind, one)


@pytest.mark.parametrize(
    ("quant", "variant"),
    [
        ("none", {"bias": "all", "target_modules": ["q_proj"]}),
        ("nf4", {"use_rslora": True}),
        ("nf4", {"use_dora": True}),
        ("int8", {}),
    ],
)
def test_the_logits_are_those_of_peft(quant: str, variant: dict[str, Any], tmp_path: Path, group: None) -> None:
    place = adapter(tmp_path / "first", f"quant={quant}", **variant) / "adapter"
    config = settled(f"lora.start={place}", f"quant={quant}", "train.precision=fp32", "lora.dropout=0.1")
    model: Any = load_trainable(config)
    before = {name: value.clone() for name, value in starting_adapter.saved_names(model).items()}
    starting_adapter.load(model, str(place))
    reference = peft.PeftModel.from_pretrained(
        load_base(config.model, config.quant, config.train.precision), str(place), is_trainable=True
    )
    after, file = starting_adapter.saved_names(model), load_file(place / "adapter_model.safetensors")
    assert after.keys() == file.keys() and all(torch.equal(after[name], file[name]) for name in file)
    assert not all(torch.equal(before[name], after[name]) for name in file)
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns == {name for name, parameter in reference.named_parameters() if parameter.requires_grad}
    ids = torch.tensor([[1, 7, 30, 200]])
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=ids).logits, reference.eval()(input_ids=ids).logits)


def test_tensors_that_do_not_fit_the_model_are_refused(made: Path, tmp_path: Path, group: None) -> None:
    model: Any = load_trainable(settled(f"lora.start={made}", "quant=none"))
    file = made / "adapter/adapter_model.safetensors"
    whole = load_file(file)
    first = min(whole)
    cases = {
        "tensors are missing": {name: value for name, value in whole.items() if name != first},
        "which the model's adapter has not": whole | {first.replace("layers.0", "layers.9"): whole[first].clone()},
        "and the model needs": whole | {first: whole[first][:, :8].contiguous()},
        "is not finite": whole | {first: whole[first] * float("nan")},
    }
    for number, (message, tensors) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        shutil.copytree(made / "adapter", folder)
        save_file(tensors, folder / file.name)
        with pytest.raises(ConfigError, match=message):
            starting_adapter.load(model, str(folder))
    recorded = json.loads((made / "adapter" / base_identity.NAME).read_text())["base"]["sha256"]
    starting_adapter.load(model, str(made / "adapter"), recorded)
    with pytest.raises(ConfigError, match="another base"):
        starting_adapter.load(model, str(made / "adapter"), "0" * 64)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps."""
    folder = tmp_path_factory.mktemp("outputs") / "first"
    done = run_script("train.py", f"hydra.run.dir={folder}", "train.max_steps=4", "train.warmup_ratio=0", *QUICK)
    assert done.returncode == 0, done.stderr
    return folder


def result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def test_a_run_begins_with_the_scores_that_the_first_ended_with_and_resumes_without_it(
    first: Path, tmp_path: Path
) -> None:
    own, second = tmp_path / "copy", tmp_path / "second"
    shutil.copytree(first / "adapter", own)
    command = (f"hydra.run.dir={second}", *QUICK)
    done = run_script("train.py", f"lora.start={own}", "train.max_steps=2", *command)
    assert done.returncode == 0, done.stderr
    assert "from copy" in done.stdout
    config = load_config(second / "config.yaml")
    assert config.lora.start == str(own) and config.lora.r == 8
    assert result(second)["before"] == result(first)["after"]
    assert result(second)["start"] == "copy"
    text = card(look(str(second)), ExportKind.adapter, tmp_path / "export", str(TINY), None)
    assert (
        "| started from | copy |" in text and "lora.start=copy train.max_steps=2" in text and str(tmp_path) not in text
    )
    shutil.rmtree(own)
    done = run_script("train.py", f"resume={second}", "train.max_steps=3")
    assert done.returncode == 0, done.stderr
    assert result(second)["steps"] == 3 and result(second)["before"] == result(first)["after"]
    done = run_script("train.py", f"lora.start={own}", "train.max_steps=3", *command)
    assert done.returncode == 0 and "the run is complete" in done.stdout, done.stderr


def test_members_of_a_pack_start_where_they_say(first: Path, tmp_path: Path) -> None:
    """One from the adapter, one from nothing: their evaluations before training are not shared."""
    place = os.path.relpath(first)
    done = run_script(
        "train.py", "-m", f"lora.start={place},null", "train.max_steps=1", f"hydra.sweep.dir={tmp_path}/sweep",
        "hydra.launcher.pack=2", "hydra.launcher.jobs=1", *QUICK,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = {load_config(file).lora.start: file.parent for file in (tmp_path / "sweep").glob("*/config.yaml")}
    assert set(runs) == {str(first / "adapter"), None}
    assert result(runs[str(first / "adapter")])["before"] == result(first)["after"]
    assert result(runs[None])["before"] == result(first)["before"]
