"""``lora.start``: which adapter is found, what it decides, and what is refused before a model is loaded."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import config_of
from hydraft.config.lora import LoraMethod, start_name
from hydraft.config.schema import Config, load_config, save_config
from hydraft.errors import ConfigError
from hydraft.models import base_identity
from hydraft.models.adapter_files import PICKLE, SETTINGS, WEIGHTS
from hydraft.plan import plan
from hydraft.runs import start
from hydraft.sweep.packs import pack_key
from hydraft.sweep.results.ledger import key_of
from hydraft.system.source_tree import TINY
from hydraft.tracking import metadata
from using import adapter

TARGETS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run ``zh``, with an adapter of rank 4."""
    return adapter(tmp_path_factory.mktemp("runs") / "zh", "quant=none")


def settled(*overrides: str, folder: Path | None = None) -> tuple[Config, list[str]]:
    return start.settled(config_of(*overrides), overrides, folder)


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        settled(*overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def changed(made: Path, to: Path, **settings: Any) -> Path:
    """A copy of the adapter whose adapter_config.json has other values."""
    shutil.copytree(made / "adapter", to)
    file = to / SETTINGS
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return to


def test_the_adapter_decides_what_is_not_typed(made: Path) -> None:
    config, lines = settled(f"lora.start={made}", "lora.dropout=0.1")
    lora = config.lora
    assert (lora.start, lora.r, lora.alpha, lora.target_modules) == (str(made / "adapter"), 4, 8.0, TARGETS)
    assert lora.dropout == 0.1 and lora.method is LoraMethod.lora
    assert lines == [f"lora.start: zh decides r=4, alpha=8, target_modules=[{','.join(TARGETS)}]"]
    again, lines = settled(
        f"lora.start={made / 'adapter'}", "lora.r=4", "lora.alpha=8", "lora.target_modules=all-linear"
    )
    assert again.lora.targets == ["all-linear"] and lines == []
    assert "lora r=4 from zh" in plan.headline(config)
    assert metadata.settings(config, made)["lora"]["start"] == str(made / "adapter")
    assert settled()[0].lora == Config().lora


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lora.r=8"], "lora.r=8: the adapter of lora.start has r=4: leave lora.r out"),
        (["lora.alpha=16"], "lora.alpha=16: the adapter of lora.start has alpha=8"),
        (["lora.bias=all"], "lora.bias=all: the adapter of lora.start has bias=none"),
        (["lora.target_modules=[q_proj]"], "lora.target_modules=[q_proj]: the adapter of lora.start has"),
        (["lora=dora"], "lora.method=dora: the adapter of lora.start has method=lora"),
        (["lora=pissa", "quant=none"], "lora=pissa computes its first weights"),
        (["lora=none", "quant=none"], "lora=none trains all weights"),
        (["model=qwen"], f"was trained on {TINY}, and model.path="),
        (["model.init=random"], "is another model"),
    ],
)
def test_what_is_typed_must_be_the_adapters_own(made: Path, overrides: list[str], message: str) -> None:
    assert message in refused(f"lora.start={made}", *overrides)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save=['lm_head']"),
        ({"exclude_modules": ["q_proj"]}, "exclude_modules="),
        ({"a_later_feature": {"on": 1}}, "a_later_feature="),
        ({"peft_type": "IA3"}, "only LoRA"),
        ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
        ({"r": None}, "no r, lora_alpha or target_modules"),
        ({"target_modules": [3]}, "target_modules=[3]"),
        ({"use_dora": True, "use_rslora": True}, "use_dora and use_rslora"),
    ],
)
def test_features_that_runs_do_not_have_are_refused(
    made: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    assert message in refused(f"lora.start={changed(made, tmp_path / 'x', **settings)}")


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"use_rslora": True, "init_lora_weights": "gaussian"}, LoraMethod.rslora),
        ({"use_dora": True}, LoraMethod.dora),
        ({"init_lora_weights": False, "fan_in_fan_out": True}, LoraMethod.lora),
    ],
)
def test_the_method_is_the_adapters(made: Path, tmp_path: Path, settings: dict[str, Any], method: LoraMethod) -> None:
    config, _ = settled(f"lora.start={changed(made, tmp_path / 'x', **settings)}")
    assert config.lora.method is method


def _pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / PICKLE)


def _empty(folder: Path) -> None:
    save_file({name: torch.empty(0, 4) for name in load_file(folder / WEIGHTS)}, folder / WEIGHTS)


def _no_lora(folder: Path) -> None:
    save_file({"a": torch.ones(2)}, folder / WEIGHTS)


def _cut_off(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])


def _no_settings(folder: Path) -> None:
    (folder / SETTINGS).unlink()


def _damaged(folder: Path) -> None:
    (folder / base_identity.NAME).write_text("{")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_pickle, "is a pickle, which may contain code"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"no {WEIGHTS}"),
        (_empty, "is empty"),
        (_no_lora, "no tensors of LoRA"),
        (_cut_off, "cut off, or not safetensors"),
        (_no_settings, "neither a run's folder"),
        (_damaged, "is damaged"),
    ],
)
def test_files_that_are_no_whole_adapter_are_refused(
    made: Path, tmp_path: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    folder = tmp_path / "x"
    shutil.copytree(made / "adapter", folder)
    spoil(folder)
    assert message in refused(f"lora.start={folder}")


def test_a_run_without_an_adapter_is_refused_with_a_way_out(made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(made / "config.yaml", run)
    assert "saved no adapter (status not ended): give another one" in refused(f"lora.start={run}")
    step = run / "checkpoints/step-000100"
    shutil.copytree(made / "adapter", step)
    assert f"resume it, or give its checkpoint {step}" in refused(f"lora.start={run}")
    assert settled(f"lora.start={step}")[0].lora.start == str(step)
    (run / "model").mkdir()
    assert f"model=auto model.path={run / 'model'}" in refused(f"lora.start={run}")
    assert "no such folder" in refused(f"lora.start={run / 'nothing'}")


def test_the_base_must_be_that_of_the_adapter(made: Path, tmp_path: Path) -> None:
    """By its hash if that is recorded, else by its name."""
    other, moved = tmp_path / "other", tmp_path / "moved"
    shutil.copytree(TINY, moved)
    assert settled(f"lora.start={made}", "model=auto", f"model.path={moved}")[1][:-1] == []
    shutil.copytree(TINY, other)
    tensors = load_file(other / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, other / "model.safetensors")
    assert "is another model" in refused(f"lora.start={made}", "model=auto", f"model.path={other}")
    foreign = changed(made, tmp_path / "foreign", base_model_name_or_path="someone/tiny")
    (foreign / base_identity.NAME).unlink()
    assert "by name only (someone/tiny)" in settled(f"lora.start={foreign}")[1][0]
    assert "base_model_name_or_path" in refused(f"lora.start={foreign}", "model=auto", f"model.path={moved}")
    nameless = changed(made, tmp_path / "nameless", base_model_name_or_path=None)
    (nameless / base_identity.NAME).unlink()
    assert "records no base" in settled(f"lora.start={nameless}")[1][0]


def test_random_weights_are_the_same_with_the_same_seed(tmp_path: Path) -> None:
    drawn = ("quant=none", "model.init=random")
    run = adapter(tmp_path / "run", *drawn, "seed=7")
    assert settled(f"lora.start={run}", *drawn, "seed=7")[0].lora.r == 4
    assert "its random base has seed=7" in refused(f"lora.start={run}", *drawn, "seed=8")


def test_last_is_the_newest_run_and_a_run_keeps_its_own(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "lora.start=last: no run below outputs/" in refused("lora.start=last")
    for age, name in ((20, "old"), (10, "new")):
        shutil.copytree(made, tmp_path / "outputs" / name)
        seconds = (made / "config.yaml").stat().st_mtime - age
        os.utime(tmp_path / "outputs" / name / "config.yaml", (seconds, seconds))
    config, _ = settled("lora.start=last")
    assert config.lora.start == str(tmp_path / "outputs/new/adapter")
    own = tmp_path / "outputs/own"  # this run itself, which is the newest from now on
    own.mkdir()
    save_config(config, own / "config.yaml")
    shutil.rmtree(tmp_path / "outputs/new")
    for typed in ("last", "outputs/new", str(tmp_path / "outputs/new/adapter")):
        assert settled(f"lora.start={typed}", folder=own)[0].lora == config.lora, typed
    assert "lora.r=8" in _refused_in(own, "lora.start=last", "lora.r=8")
    assert settled("lora.start=outputs/old", folder=own)[0].lora.start == str(tmp_path / "outputs/old/adapter")


def _refused_in(folder: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        settled(*overrides, folder=folder)
    return str(error.value)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/me/outputs/2026-11-28/19-56-00-123/adapter", "2026-11-28/19-56-00-123"),
        ("/home/me/multirun/rank/r=4/adapter", "rank/r=4"),
        ("/data/mine/adapter", "mine"),
        ("/data/mine/checkpoints/step-000100", "mine/checkpoints/step-000100"),
        ("/data/mine", "mine"),
        ("/c/models--a--b-c/snapshots/0123456789", "a/b-c@0123456"),
        ("/outputs/outputs", "outputs"),
        ("/outputs/outputs/mine", "mine"),
        ("last", "last"),
    ],
)
def test_a_name_has_no_folder_of_this_machine(path: str, name: str) -> None:
    assert start_name(path) == name


def test_a_start_is_part_of_a_jobs_identity_and_not_of_its_pack(made: Path) -> None:
    config, plain = settled(f"lora.start={made}", "train.precision=fp32", "zero=stage2")[0], config_of("zero=stage2")
    assert key_of(config) != key_of(plain)
    without = config_of("train.precision=fp32", "zero=stage2")
    assert pack_key(config) == pack_key(without) is not None
    assert not config.lora.starts_as_base and without.lora.starts_as_base


def test_a_config_of_an_earlier_version_starts_from_nothing(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    text = (made / "config.yaml").read_text()
    assert "  start: null\n" in text
    file.write_text(text.replace("  start: null\n", ""))
    assert load_config(file).lora.start is None
