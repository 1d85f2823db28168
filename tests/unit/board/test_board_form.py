"""What is typed into the board's form: as a command line, what is not passed on, and which field a refusal is about."""

from pathlib import Path

import pytest
import yaml

from hydraft.board import composing, form
from hydraft.board.planner import Planner
from hydraft.board.planning import Kept
from hydraft.board.roots import roots_of
from hydraft.config import groups
from hydraft.config.markdown import TRANSLATIONS
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.infer.serve.errors import ApiError


def test_the_command_line_of_a_form() -> None:
    found = composing.typed(
        {"lora": "dora"}, {"lora.r": "16", "data.train": "my data,1.json"}, "-m '+data.columns.a=b c'"
    )
    assert found.arguments == ["-m", "lora=dora", "lora.r=16", "data.train=my data,1.json", "+data.columns.a=b c"]
    assert found.line == "python train.py -m lora=dora lora.r=16 'data.train=my data,1.json' '+data.columns.a=b c'"


@pytest.mark.parametrize(
    ("override", "several"),
    [
        ("lora.r=4,8", True), ("train.learning_rate=interval(1e-4, 1e-3)", True), ("lora=dora,default", True), ("seed=range(1,4)", True),
        ("lora.r=4", False), ("optimizer.betas=[0.9,0.95]", False), ("data.train=a,b.json", False), ("data.only=[qa,summary]", False),
    ],
)  # fmt: skip
def test_several_values_are_a_sweep(override: str, several: bool) -> None:
    name, _, value = override.partition("=")
    assert composing.typed({}, {name: value}).sweep is several


@pytest.mark.parametrize(
    "more",
    [
        "mode=plan", "mode=verify", "resume=last", "sweep.resume=last", "--config-dir=/tmp", "--cfg job", "-cd /tmp", "--experimental-rerun=x",
        "hydra.job.chdir=true", "hydra.searchpath=[/tmp]", "hydra.launcher._target_=os.system", "+hydra.launcher={_target_:os.system}",
        "hydra.sweeper.params={a:1} ++x={_target_:os.system}", "hydra.output_subdir=.hydra", "~hydra", "hydra.mode=MULTIRUN", "a='",
    ],
)  # fmt: skip
def test_what_is_no_override_of_a_run_is_not_passed_on(more: str) -> None:
    with pytest.raises(ConfigError) as refused:
        composing.typed({}, {}, more)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "override",
    [
        "hydra.run.dir=/etc", "hydra.run.dir=outputs/../../x", "hydra.run.dir=outputs", "hydra.run.dir=outputs/link/x", "hydra.sweep.dir=/tmp",
        "hydra.run.dir=outputs/${oc.env:HOME}", "sweep.name=..", "sweep.name=/etc", "hydra.run.dir='/etc'", "hydra.run.dir=~/x",
    ],
)  # fmt: skip
def test_a_folder_that_is_not_below_those_of_the_board_is_refused(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/link").symlink_to("/tmp")
    roots = roots_of([])
    name, _, value = override.partition("=")
    composing.check_folders(composing.typed({}, {name: f"{Path('outputs/new' if 'run' in name else 'multirun/new')}"}), roots) if "dir" in name else None  # fmt: skip
    with pytest.raises(ConfigError, match=r"^(hydra|sweep)\.[\w.]+="):
        composing.check_folders(composing.typed({}, {name: value}), roots)


def test_a_refusal_is_shown_beside_its_field() -> None:
    assert composing.fields_of("lora.r=0: the rank of a LoRA update is at least 1; use lora=none")[0] == "lora.r"
    assert composing.fields_of("quant=nf5: no such option; did you mean quant=nf4?") == ["quant"]
    assert composing.fields_of("train.lr: no such setting; did you mean train.learning_rate?") == [
        "train.learning_rate"
    ]
    assert composing.fields_of("/etc/x.y=3: what is this?") == []


def test_the_form_has_every_group_and_setting_in_both_languages() -> None:
    found = form.definition()
    assert [one["name"] for one in found["groups"]] == [name for name in groups.defaults("train") if name in groups.groups()]  # fmt: skip
    named = {one["name"]: one for one in found["settings"]}
    assert set(found["usual"]) == set(form.USUAL) and {"lora.r", "train.warmup_ratio", "hydra.launcher.jobs"} <= named.keys()  # fmt: skip
    assert not {"mode", "resume", "sweep.resume"} & named.keys()
    assert all(one["meaning"]["zh"] != one["meaning"]["en"] for one in named.values())
    assert "".join(str(found)).count("``") == 0
    model = next(one for one in found["groups"] if one["name"] == "model")
    sizes = {option["name"]: option["sizes"] for option in model["options"]}
    assert {"2.5-0.5b", "3.5-27b"} <= set(sizes["qwen"]) and sizes["auto"] == []


def test_the_chinese_texts_are_of_options_that_there_are() -> None:
    known = yaml.safe_load(TRANSLATIONS.read_text(encoding="utf-8"))["options"]
    there = {f"{group}={option}" for group, options in groups.groups().items() for option in options}
    assert set(known) <= there


def test_records_are_measured_again_once_their_file_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("[]")
    config, kept = Config(), Kept()
    config.data.train, config.data.eval = str(file), None
    kept.check()
    kept.add(config)
    kept.known["key"] = object()  # type: ignore[assignment]
    kept.check()
    assert kept.known
    file.write_text("[1]")
    kept.check()
    assert not kept.known
    config.data.train = "owner/name"  # of the hub: it may change unseen
    kept.known["key"] = object()  # type: ignore[assignment]
    kept.add(config)
    assert not kept.known


def test_a_plan_that_takes_too_long_is_given_up() -> None:
    planner = Planner(seconds=0.001)
    with pytest.raises(ApiError, match="not ready after"):
        planner.plan(["lora.r=16"])
    planner.close()
