"""Wrong overrides of every kind: one line that names what was typed and what may be typed, code 2, no traceback."""

import dataclasses
import itertools
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import command_line
import pytest

from hydraft.config import bounds, cli, group_choice, groups, infer_rules, mistakes, rules
from hydraft.config.bounds import LARGEST_SEED, Bounds, bounds_of
from hydraft.config.explain import explain
from hydraft.config.infer import InferConfig
from hydraft.config.schema import Config
from hydraft.errors import ConfigError

VALUES = (
    "3", "8", "-1", "1.5", "", " ", "true", "[]", "[1]", "[nothing]", "[a,b]", "[[x]]", "[", "]", "{}", "'x", '"x"', "'3'", "((", ")",
    "a b", "é", "４", "选项", "../x", "/etc/passwd", "x" * 5000, "1e400", "nan", "inf", "???", "${seed}", "${oc.env:HOME}", "x,y", "choice(1,2)",
    "range(1,3)", "int(3)", "a=b", "@x", ":", "-", "\n", "\t", "\x1b[31m", "\x00", "\ud800", "~", "*", "%", "stage9", "None", "\u202e3",
)  # fmt: skip
"""Options that no group has."""

MEANT = {
    "zero=3": "zero=stage3?", "zero=[3]": "zero=stage3?", "zero='3'": "zero=stage3?", "+zero=3": "zero=stage3?",
    "lora=8": "lora.r=8?", "lora=r16": "lora.r=16?", "lora=lora": "lora=default?", "lora=doora": "lora=dora?",
    "cluster=8": "cluster=1x8?", "cluster=3": "cluster.ranks_per_node=3?", "cluster=0": "no such option (there are: 1x1",
    "quant=4": "quant=nf4?", "quant=4bit": "quant=nf4?", "quant=8": "quant=int8?", "quant=[4bit]": "quant=nf4?",
    "model=ChatGLM2-6B": "model=chatglm2 model.size=6b?", "model=tinny": "model=tiny?", "tracker=wand": "tracker=wandb?",
    "kernels=lige": "kernels=liger?", "sweep=rank-lr": "sweep=rank_lr?", "experiment=zh_q": "experiment=zh_qa?",
    "objective=ppo": "(there are: dpo", "experiment={a:1}": "(there are: chatglm2", "data=zh_task": "data=zh_tasks?",
    "zero=stage2,3": "zero=stage2,stage3?", "zero=[stage2,9]": "zero=9: no such option", "zero=range(1,3)": "an option is no number",
}  # fmt: skip
"""What is typed, and what the refusal has."""


def message(*arguments: str, command: str = "train") -> str:
    """What is printed for arguments that are refused before Hydra composes anything."""
    with pytest.raises(ConfigError) as refused:
        mistakes.refuse(arguments, command)
    line = explain(refused.value, command)
    assert "\n" not in line and line.isprintable() and len(line) < 2000
    return line


@pytest.mark.parametrize("command", ["train", "infer"])
def test_no_group_takes_what_is_no_option(command: str) -> None:
    options = {one for group in groups.defaults(command) for one in groups.groups()[group]}
    for group, value in itertools.product(groups.defaults(command), VALUES):
        line = message(f"{group}={value}", command=command)
        assert group in line and "Traceback" not in line
        if value.strip():
            assert any(
                said in line
                for said in (*options, "lora.r=", "cluster.ranks_per_node=", "data.train=", "model.path=", "UTF-8")
            ), line


@pytest.mark.parametrize("typed", MEANT)
def test_the_option_that_was_meant_is_named(typed: str) -> None:
    for before in ([], ["-m"]):
        assert MEANT[typed] in message(*before, typed)


def test_every_option_is_taken() -> None:
    for command in ("train", "infer"):
        for group, default in groups.defaults(command).items():
            for option in groups.groups()[group]:
                for typed in (
                    option,
                    f"'{option}'",
                    f"[{option}]",
                    f"{option},{option}",
                    f"choice({option})",
                    "glob(*)",
                ):
                    group_choice.refuse(f"{group}={typed}", command)
            if default is None:
                group_choice.refuse(f"{group}=null", command)
    group_choice.refuse("zero=my_own", "train", others=True)  # in a folder of --config-dir


COMPOSED = (
    "lora.r=[]", "lora.r=8'", "lora.r=${seed", "lora.r=${oc.env:NO_SUCH}", "lora.r=???", "lora.r=" + "9" * 5000, "seed=1e400", "lora..r=8",
    "lora/r=8", "+nope=3", "+=3", "🦙=3", "hydra=3", "hydra/launcher=[1]", "+hydra.callbacks.x._target_=os.system", "mode=[plan]",
    "train=3", "optimizer.betas=[[1],2]",
)  # fmt: skip
"""Of settings: what Hydra's grammar, its composition or OmegaConf refuse, or do not expect."""


def checked(composed: Any) -> None:
    """As in train.py, before the machine is looked at."""
    rules.check(cli.typed(composed, Config), None)


def test_what_hydra_refuses_or_does_not_expect_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for typed in COMPOSED:
        line = command_line.refused(monkeypatch, "train", typed, task=checked)
        name = (
            typed.lstrip("+~.")
            .partition("=")[0]
            .partition(".")[0]
            .partition("[")[0]
            .partition("/")[0]
            .partition("@")[0]
        )
        assert name in line and line.strip().isprintable() and len(line) < 2000, line


FLAGS = {
    "--cfg": "needs a value",
    "--cfg nope": "job, hydra, all",
    "-i x": "defaults-tree",
    "--config-dir": "needs a value",
    "--experimental-rerun x": "pickle",
}


@pytest.mark.parametrize("typed", FLAGS)
def test_a_flag_of_hydra_with_a_wrong_value_is_told(typed: str) -> None:
    assert FLAGS[typed] in message(*typed.split())


def test_a_home_folder_that_there_is_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(composed: Any) -> None:
        Path(composed.model.path).expanduser()
        Path.home()

    line = command_line.refused(monkeypatch, "train", "model.path=~nobody-here/x", task=read)
    assert "model.path='~nobody-here/x': there is no such home folder" in line
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_000)  # as in a container with a user of no name
    assert "HOME: is not set" in command_line.refused(monkeypatch, "train", task=read)


def test_a_sweep_of_what_hydra_does_not_expect_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started: no job is composed."""
    for typed in (
        "hydra.launcher._target_=os.system",
        "hydra=3",
        "hydra/launcher=[1]",
        "lora=[1]",
        "hydra.sweeper.params=3",
    ):
        assert typed.partition("=")[0] in command_line.refused(monkeypatch, "train", "-m", typed, task=checked)


def test_values_that_take_a_parser_minutes_are_refused_at_once() -> None:
    for typed in (
        "lora.r=" + "[" * 100_000,
        "+x=" + "{a:" * 1000,
        "seed=" + "(" * 90,
        "data.only=[" + "a," * 500_000 + "a]",
        "a" * 10**6 + "=" + "1" * 10**6,
    ):
        line = message(typed)
        assert "brackets in each other" in line or "characters, and at most" in line
    mistakes.refuse(["prompt=" + "[" * 100_000], "infer")  # a prompt is text


def numeric(section: Any, prefix: str = "") -> Iterator[tuple[str, Any, str, Bounds, bool]]:
    """Every setting with a number: name, section, field, bounds, and whether it is a whole number."""
    hints = typing.get_type_hints(type(section))
    for declared in dataclasses.fields(section):
        hint, value = hints[declared.name], getattr(section, declared.name)
        if dataclasses.is_dataclass(value):
            yield from numeric(value, f"{prefix}{declared.name}.")
        elif (kinds := {hint, *typing.get_args(hint)} & {int, float}) and typing.get_origin(hint) is not list:
            yield f"{prefix}{declared.name}", section, declared.name, bounds_of(declared), float not in kinds


@pytest.mark.parametrize("schema", [Config, InferConfig])
def test_a_number_out_of_its_bounds_is_told_the_bounds(schema: type) -> None:
    config = schema()
    seen = 0
    for name, section, leaf, its, whole in numeric(config):
        before = getattr(section, leaf)
        wrong = dict.fromkeys((2**63, 10**400), "is too large" if whole else "") if whole else {}
        wrong |= {} if whole else dict.fromkeys((math.inf, -math.inf, math.nan), "is no finite number")
        step = 1 if whole else 1e-6
        for bound, outside in ((its.at_least, -step), (its.at_most, step), (its.above, 0), (its.below, 0)):
            if bound is not None and not its.one_of and its.valid is None:
                wrong[bound + outside] = f"{bound:g}" if its.refusal is None and bound < 100_000 else ""
                setattr(section, leaf, type(before or bound)(bound - outside if outside else before or bound))
                assert outside == 0 or not [one for one in bounds.violations(config) if one.startswith(f"{name}=")]
        for value, said in wrong.items():
            setattr(section, leaf, value)
            (line,) = [one for one in bounds.violations(config) if one.startswith(f"{name}=")]
            assert (said in line and (its.refusal or its.text or "finite") in line) or "is too large" in line, line
            seen += 1
        setattr(section, leaf, before)
    assert seen > 40


def test_the_bound_that_was_passed_is_in_the_message() -> None:
    config = Config()
    config.train.learning_rate = 1e6
    assert next(iter(bounds.violations(config))).startswith(
        "train.learning_rate=1000000.0: must be above 0 and below 100"
    )
    for seed, right in ((LARGEST_SEED, True), (LARGEST_SEED + 1, False), (2**64, False), (-1, False)):
        for one in (Config(seed=seed), InferConfig(seed=seed)):
            assert (list(bounds.violations(one)) == []) is right
    assert "from 0 to 4294967295" in next(bounds.violations(Config(seed=2**32)))
    with pytest.raises(ConfigError, match="seed=-1"):
        infer_rules.check(InferConfig(seed=-1))
