"""What is typed in a setting whose type is text arrives as it was typed, through Hydra, OmegaConf and the saved config."""

import string
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from hydraft.config import cli, groups, reference, yaml_text
from hydraft.config.infer import InferConfig
from hydraft.config.schema import Config, load_config, save_config
from hydraft.config.setting_kind import Kind, kind_of
from hydraft.config.typed_text import quote
from hydraft.errors import ConfigError
from hydraft.sweep import folder_names
from hydraft.sweep.results import axes

TRICKY = [
    "价格是${price}元", "${oc.env:HOME}", "???", "2024_10_05", "7e54321", "1e3", "007", "0123", "true", "inf", "0x1f", "1_000",
    "a b", " a ", "a\tb", "a\nb", "a\r\nb", "\\", "a\\", "\\'", "a\\\\", "\\${x}", "\\\\${x}\\", "$", "${", "$${x}", "${a:\"b\"}",
    "f(x)={x}", "1+1=?", "[INST] hi [/INST]", '他说"好"', "it's", "'a' and 'b'", "'", '"', "(", ")", "]", "}", "{}x", "#x", "a=b",
    "key: value", "- x", "&a *b !c", "%d", "~", "@", "|", "^", "`x`", "…", "～", "😀", "a//b", "C:\\new\\table", "\u3000", "a\u200bb",
]  # fmt: skip
PIECES = st.sampled_from([*TRICKY, *string.punctuation.replace(",", ""), "1", "e", " ", "中", "${", "}", "\\", "\\'"])
TEXTS = st.lists(PIECES, min_size=1, max_size=6).map("".join)


def is_plain(text: str) -> bool:
    """Whether the text has no meaning of its own: not in quotes, not null, not one of Hydra's functions."""
    quoted = len(text.strip()) > 1 and text.strip()[0] == text.strip()[-1] and text.strip()[0] in "'\""
    return not quoted and text.strip().lower() != "null" and text.strip(" \t") != ""


def arrives(override: str) -> Any:
    """The value of an override, by Hydra's parser and OmegaConf's interpolation."""
    value = OverridesParser.create().parse_override(override).value()
    return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]  # type: ignore[call-overload, index]


@given(TEXTS.filter(is_plain))
@settings(max_examples=60, deadline=None)
def test_a_text_arrives_as_it_was_typed(text: str) -> None:
    for name in ("tracker.group", "+cluster.slurm.options.mem"):
        typed = quote(f"{name}={text}")
        assert arrives(typed) == text
        assert quote(typed) == typed  # the command that a sweep records can be typed again
    assert arrives(quote(f"prompt={text}, {text}")) == f"{text}, {text}"


@given(st.lists(TEXTS.map(str.strip).filter(is_plain), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_the_values_of_a_sweep_arrive_as_they_were_typed(texts: list[str]) -> None:
    """In quotes, as Hydra has it for text with any character in it."""
    written = ["'" + quote(f"prompt={text}").partition("=")[2][1:-1] + "'" for text in texts]
    override = OverridesParser.create().parse_override(quote(f"tracker.group={','.join(written)}", sweep=True))
    values = list(override.sweep_string_iterator()) if len(texts) > 1 else [override.get_value_element_as_str()]
    assert [arrives(f"tracker.group={value}") for value in values] == texts


def names(command: str, *kinds: Kind) -> list[str]:
    found = [one.name for section in reference.sections(command) for one in section.settings]
    return [name for name in found if kind_of(name) in kinds and "<" not in name and not name.startswith("hydra.")]


@pytest.mark.parametrize(("command", "schema"), [("train", Config), ("infer", InferConfig)])
def test_every_text_setting_of_a_command_takes_every_text(command: str, schema: type, tmp_path: Path) -> None:
    single, lists = names(command, Kind.text, Kind.any), names(command, Kind.texts)
    assert len(single) > 8
    with initialize_config_dir(str(groups.CONF), version_base="1.3"):
        for shift in range(0, len(TRICKY), 17):
            texts = TRICKY[shift:] + TRICKY[:shift]
            chosen = dict(zip(single, texts * 2, strict=False))
            inside = [
                text
                for text in texts[:9]
                if text.strip() == text and not set(text) & set("[]{}()\"'") and text[-1] != "\\"
            ]
            typed = [f"{name}={text}" for name, text in chosen.items()]
            typed += [f"{name}=[{','.join(inside)}]" for name in lists]
            config = cli.typed(compose(command, [quote(one, commas=command == "infer") for one in typed]), schema)
            check(config, chosen | dict.fromkeys(lists, inside))
            if isinstance(config, Config):
                save_config(config, tmp_path / "config.yaml")
                assert load_config(tmp_path / "config.yaml") == config


def check(config: Any, expected: dict[str, Any]) -> None:
    for name, text in expected.items():
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        if not name.endswith("template"):  # in which \n is a line break
            assert value == text, name


MEANINGS = {
    "tracker.group='a, b'": "a, b",
    'tracker.group="1e3"': "1e3",
    "tracker.group='${x}'": "${x}",
    "tracker.group=null": None,
    "tracker.group=a\\,b": "a,b",
    "tracker.tags=[1e3,007,true]": ["1e3", "007", "true"],
    "tracker.tags=['a, b',c d,it's]": ["a, b", "c d", "it's"],
    "tracker.tags=[f(a,b),x{1,3}]": ["f(a,b)", "x{1,3}"],
    "tracker.tags=[]": [],
    "tracker.tags=word": ["word"],
    "lora.target_modules=.*\\.(q|v)_proj": ".*\\.(q|v)_proj",
    "data.columns={instruction: 问题, output: 1e3}": {"instruction": "问题", "output": "1e3"},
    "cluster.slurm.options={mem: 007, exclusive: null}": {"mem": "007", "exclusive": None},
    "run=20241005": "20241005",
    "run=[1e3,'b']": ["1e3", "b"],
    "run={x: 1e3, y: ${b}}": {"x": "1e3", "y": "${b}"},
    "run=multirun/a/lr=1e-4,r=8": "multirun/a/lr=1e-4,r=8",
    "hydra.run.dir=2024_10_05": "2024_10_05",
    "lora.r=8": 8,
    "optimizer.betas=[0.9,0.95]": [0.9, 0.95],
}


@pytest.mark.parametrize("override", MEANINGS)
def test_what_has_a_meaning_keeps_it(override: str) -> None:
    assert arrives(quote(override)) == MEANINGS[override]


def test_hydras_own_settings_still_interpolate() -> None:
    assert quote("hydra.run.dir=runs/${now:%Y}") == "hydra.run.dir='runs/${now:%Y}'"


SWEEPS = {
    "model.revision=1e3,007, ${x}": ["1e3", "007", "${x}"],
    "tracker.group=甲,乙": ["甲", "乙"],
    "tracker.group=choice(1e3,'007')": ["1e3", "007"],
    "tracker.group=tag(t, choice(1e3, f(a,b)))": ["1e3", "f(a,b)"],
    "tracker.group=sort(b,1e3,a)": ["1e3", "a", "b"],
    "lora.target_modules=[q_proj],[q_proj,1e3]": [["q_proj"], ["q_proj", "1e3"]],
    "data.template=chat,'Q: {instruction}'": ["chat", "Q: {instruction}"],
}


@pytest.mark.parametrize("override", SWEEPS)
def test_a_sweep_over_text(override: str) -> None:
    parsed = OverridesParser.create().parse_override(quote(override, sweep=True))
    assert [arrives(f"x={value}") for value in parsed.sweep_string_iterator()] == SWEEPS[override]


def test_tables_and_folders_of_a_sweep_show_the_text() -> None:
    typed = quote("data.name=1e3,007,${x}元,a b,C:\\d", sweep=True)
    jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides([typed]), None)[0]
    assert [axes.split(override) for (override,) in jobs] == [
        ("data.name", text) for text in ("1e3", "007", "${x}元", "a b", "C:\\d")
    ]
    assert folder_names.names(jobs) == ["name=1e3", "name=007", "name=-{x}元", "name=a b", "name=C-d"]


def test_a_text_that_yaml_reads_as_a_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    choices = {"experiment": "mine", "zero": None, "data": "none_here"}
    right = "data: {name: zh_qa}\nmodel: {revision: '7e54321', size: 3}\nlora: {r: 8}\ntracker: {tags: ['1e3', a]}\n"
    file.write_text(f"# @package _global_\n{right}")
    yaml_text.refuse_numbers([tmp_path], choices)
    for line, message in {
        "model: {revision: 7e54321}": r'model\.revision: 7e54321: YAML reads it as inf: put it in quotes: "7e54321"',
        "tracker: {group: 2024_10_05}": r"tracker\.group: 2024_10_05: YAML reads it as 20241005",
        "data: {labels: [a, 007]}": r"data\.labels\.1: 007: YAML reads it as 7",
        "sweep: {name: true}": r"sweep\.name: true: YAML reads it as True",
        "hydra: {sweeper: {params: {model.revision: 1.10}}}": r"model\.revision: 1\.10: YAML reads it as 1\.1",
    }.items():
        file.write_text(f"# @package _global_\n{line}\n")
        with pytest.raises(ConfigError, match=message):
            yaml_text.refuse_numbers([tmp_path], choices)


def test_no_file_of_conf_has_a_text_that_changes() -> None:
    for group, options in groups.groups().items():
        for option in options:
            yaml_text.refuse_numbers([groups.CONF], {group: option})


def test_what_is_typed_as_text_is_no_sweep() -> None:
    for override in ("prompt=a,b", "data.template=Given {instruction}, answer {input}", "tracker.group='a,b'"):
        assert not OverridesParser.create().parse_override(quote(override, sweep=True)).is_sweep_override()


@pytest.mark.parametrize(
    ("override", "sweep", "message"),
    [
        ("data.train=a,b.json", False, "add -m; as one text it is 'data.train=\"a,b.json\"'; for all of them it is data.train=a 'data.mix=[b.json*1]'"),
        ("lora.target_modules=q_proj,k_proj", False, "a list is in brackets: 'lora.target_modules=[q_proj,k_proj]'"),
        ("data.mix=a.json*1,b.json*2", False, "a list is in brackets: 'data.mix=[a.json*1,b.json*2]'"),
        ("data.only=qa,summary", True, "or for a sweep 'data.only=[qa],[summary]'"),
        ("tracker.tags=[a],[b]", False, "add -m"),
        ("model.revision=choice(a,b)", False, "add -m"),
        ("data.columns=instruction: question", False, "a dict is in braces: 'data.columns={instruction: question}'"),
        ("cluster.slurm.setup=[export X=\"a,b\"]", False, "quoted as a whole"),
        ("run=a,b", False, "a list is in brackets: 'run=[a,b]'"),
    ],
)  # fmt: skip
def test_several_values_that_are_ambiguous_are_refused(override: str, sweep: bool, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        quote(override, sweep=sweep)
    assert str(refused.value).startswith(f"{override}: ") and message in str(refused.value)


def test_a_comma_in_a_path_that_exists_is_no_sweep(tmp_path: Path) -> None:
    file = tmp_path / "a,b.json"
    file.touch()
    assert arrives(quote(f"data.train={file}")) == str(file)
    assert arrives(quote("output=a,b.jsonl", commas=True)) == "a,b.jsonl"
