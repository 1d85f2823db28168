"""A config that is composed in Python is that of train.py, and its overrides compose it again."""

import contextlib
import dataclasses
import inspect
import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import train
from command_line import ended, refused
from hydra import version
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import hydraft
import hydraft.plan.memory
from hydraft.api import composition, overrides
from hydraft.config import groups
from hydraft.config.choices import QuantKind
from hydraft.config.schema import Config
from hydraft.errors import ConfigError

HOSTILE = '### 问题：\n{instruction}\n{input} it\'s "so", ${x} \\ ${y}, [a] {b} #'


def composed(*typed: str) -> Config:
    """What Hydra composes, unchecked: most of these configs need a machine or a run that is not here."""
    return composition.without_hydra(composition.composed_of(typed, "train"), Config)


def rows() -> Iterator[list[str]]:
    """Lines of overrides with every option of every group, every experiment and every size of a model."""
    options = {name: found for name, found in groups.groups().items() if name not in ("sweep", "experiment", "model")}
    for number in range(max(map(len, options.values()))):
        yield [f"{name}={found[number % len(found)]}" for name, found in options.items()]
    for name in groups.groups()["experiment"]:
        yield [f"experiment={name}"]
    for family in groups.groups()["model"]:
        yield [f"model={family}", *(["model.path=owner/name"] if family == "auto" else [])]
        sizes = [] if family == "auto" else list(composed(f"model={family}").model.sizes)
        yield from ([f"model={family}", f"model.size={size}"] for size in sizes[:2])


@pytest.mark.parametrize("typed", rows(), ids=" ".join)
def test_the_overrides_of_a_config_compose_it(typed: list[str]) -> None:
    config = composed(*typed)
    assert composed(*overrides.of(config)) == config


def test_any_text_and_any_value_survives() -> None:
    config = composed(
        "data.columns={instruction: question, output: 'a,b'}", "data.train=my.json", "model=qwen", "model.size=3-0.6b"
    )
    config.data.template = HOSTILE
    config.data.only = ["a,b", "it's", "null", "1e3", "", "中文", "\\", "???"]
    config.data.name, config.tracker.group, config.tracker.tags = "007", "true", ["${a}", "???"]
    config.data.columns["input"] = "ключ: [x]"
    config.train.eval_every, config.train.max_steps, config.train.loss_spike = "epoch", 7, None
    config.train.learning_rate, config.train.save_minutes = 1e-5, None
    config.lora.target_modules = r"model\.layers\.(0|1)\..*"
    assert composed(*overrides.of(config)) == config


def test_overrides_are_those_that_a_person_would_type() -> None:
    assert overrides.of(hydraft.compose()) == []
    config = hydraft.compose(
        "model=qwen", "model.size=2.5-7b", "zero=stage3", "cluster=1x4", "lora.r=32", "data.train=my.json"
    )
    changed = dataclasses.replace(config, seed=7)
    expected = [
        "model=qwen",
        "zero=stage3",
        "cluster=1x4",
        "model.size='2.5-7b'",
        "lora.r=32",
        "data.train=my.json",
        "seed=7",
    ]
    assert sorted(set(expected) - set(overrides.of(changed))) == []


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("lora", "rank", 4, "lora.rank: no such setting"),
        ("lora", "r", "many", "lora.r: Value 'many'"),
        ("train", "epochs", None, "train.epochs"),
        ("data", "template", "a\\n{instruction}", "data.template=.*cannot be given"),
    ],
)
def test_a_config_that_was_changed_wrongly_is_refused(section: str, name: str, value: object, message: str) -> None:
    config = hydraft.compose()
    setattr(getattr(config, section), name, value)
    with pytest.raises(ConfigError, match=message):
        overrides.of(config)


def test_a_text_in_place_of_an_enumeration_is_converted() -> None:
    config = hydraft.compose()
    config.quant.kind = "none"  # type: ignore[assignment]
    assert overrides.checked(config).quant.kind is QuantKind.none
    assert overrides.of(config) == ["quant=none"]


@pytest.mark.parametrize(
    "typed",
    [
        ["lora.q=1"], ["lr=1e-3"], ["lora.r=0"], ["model=nope"], ["lora=loftq", "quant=none"], ["train.epochs=many"], ["data.template=x"],
        ["model.trust=true"], ["lora.start=nowhere"], ["objective.beta=0.5"], ["zero=stage3", "quant=int8"], ["data.only=a,b"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_refusal_is_the_line_of_train_py(typed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as caught:
        hydraft.compose(*typed)
    assert refused(monkeypatch, "train", *typed) == f"train.py: {caught.value}\n"


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("lora.r=4,8", "use hydraft.sweep"), ("-m", "hydraft.sweep"), ("--help", "flag"), ("hydra.run.dir=x", "folder="),
        ("hydra/launcher=basic", "leave it out"), ("resume=last", r"hydraft.Run\('last'\).resume\(\)"), ("sweep.replicas=3", "hydraft.sweep"),
    ],
)  # fmt: skip
def test_what_is_no_part_of_a_config_says_where_it_belongs(override: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        hydraft.compose(override)


def test_composing_leaves_hydra_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version.VersionBase.instance(), "version_base", version._get_version("1.1"))
    before = GlobalHydra.instance().hydra, HydraConfig.instance().cfg, version.getbase()
    hydraft.compose("lora.r=4")
    assert (GlobalHydra.instance().hydra, HydraConfig.instance().cfg, version.getbase()) == before


def test_a_plan_is_what_mode_plan_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["model=qwen", "model.size=2.5-7b", "cluster=1x4", "cluster.gpu_memory=6GiB"]
    planned = hydraft.plan(hydraft.compose(*typed))
    assert planned.fits is False and planned.change and planned.cost is not None
    monkeypatch.setenv("COLUMNS", "110")
    out = io.StringIO()
    code, _ = ended(monkeypatch, "train", *typed, "mode=plan", task=_into(out))
    assert code == 0 and str(planned) == out.getvalue()
    assert "frozen weights" in planned._repr_html_() and "<pre" in planned._repr_html_()


def _into(out: io.StringIO) -> Callable[[Any], None]:
    """What train.py does with a config, printed to ``out``."""

    def task(config: Any) -> None:
        with contextlib.redirect_stdout(out):
            train.train(config)

    return task


def test_importing_and_composing_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, hydraft\n"
        "assert not {'hydra', 'torch', 'hydraft.config'} & set(sys.modules)\n"
        "hydraft.plan(hydraft.compose())\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, timeout=60)


def test_a_package_of_the_same_name_stays_a_package() -> None:
    assert hydraft.plan.memory.__name__ == "hydraft.plan.memory"  # type: ignore[attr-defined]
    assert callable(hydraft.plan) and pickle.loads(pickle.dumps(hydraft.plan)) is hydraft.plan
    assert list(inspect.signature(hydraft.plan).parameters) == ["config"]
    assert set(hydraft.__all__) <= set(dir(hydraft))  # type: ignore[attr-defined]
    for name in hydraft.__all__:  # type: ignore[attr-defined]
        assert getattr(hydraft, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hydraft.nothing  # type: ignore[attr-defined] # noqa: B018
