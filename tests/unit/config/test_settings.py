"""docs/configuration.md lists every setting of the schema, and ``--help NAME`` explains each."""

import pytest
from omegaconf import OmegaConf

from conftest import ROOT
from hydraft.config import groups, help, markdown, reference

SETTINGS = [
    (command, setting)
    for command in reference.SCHEMAS
    for section in reference.sections(command)
    for setting in section.settings
]


@pytest.mark.parametrize("command", reference.SCHEMAS)
def test_every_setting_and_section_is_described(command: str) -> None:
    for section in reference.sections(command):
        assert section.meaning, section.name
        assert "(" not in section.meaning.partition(" ")[0], f"{section.name} has no docstring"
        assert [setting.name for setting in section.settings if not setting.meaning] == []


def test_the_document_is_current() -> None:
    """If this fails: ``hydraft settings > docs/configuration.md``."""
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == markdown.page(markdown.Texts())


def test_the_chinese_document_is_current_and_complete() -> None:
    """If this fails: add texts to docs/zh/settings.yaml, then ``hydraft settings zh > docs/zh/configuration.md``."""
    texts = markdown.chinese()
    page = markdown.page(texts)
    assert texts.missing == []
    assert (ROOT / "docs" / "zh" / "configuration.md").read_text(encoding="utf-8") == page


def test_there_is_no_translation_of_a_removed_setting() -> None:
    texts = markdown.chinese()
    assert texts.translations is not None
    used: set[str] = set()
    recorder = markdown.Texts(translations={}, missing=(found := []))
    markdown.page(recorder)
    used |= set(found)
    assert set(texts.translations) - used == set()


@pytest.mark.parametrize(("command", "setting"), SETTINGS, ids=lambda value: getattr(value, "name", value))
def test_the_help_of_a_setting(command: str, setting: reference.Setting) -> None:
    text = help.explain(command, setting.name)
    assert text is not None and setting.name in text
    assert setting.default in text or setting.default == "{}"


def test_the_help_of_a_setting_names_default_bounds_and_options_that_set_it() -> None:
    text = help.explain("train", "train.learning_rate")
    assert text is not None
    for line in (
        "Peak learning rate.",
        "type:    float",
        "default: 0.0002",
        "allowed: above 0 and below 100",
        "model=tiny (0.003)",
    ):
        assert line in text
    assert "unit:    records" in (help.explain("train", "train.micro_batch_size") or "")
    assert "allowed: auto, fp32, fp16, bf16" in (help.explain("train", "train.precision") or "")


@pytest.mark.parametrize("group", list(groups.groups()))
def test_the_help_of_a_group_lists_its_options(group: str) -> None:
    text = help.explain("train", group)
    assert text is not None
    for option in groups.groups()[group]:
        assert f"  {option}" in text and groups.summary(group, option) in text


@pytest.mark.parametrize(
    ("name", "meant"),
    [("train.lr", "train.learning_rate"), ("lora.rank", "lora.r"), ("zeroo", "zero"), ("nothing.like.it", "")],
)
def test_an_unknown_name_is_refused(name: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert help.print_help("train", ["--help", name]) == 2
    hint = f"; did you mean {meant}?" if meant else ""
    assert capsys.readouterr().err == f"train.py: {name}: no such setting, section or group{hint}\n"


def test_every_value_of_an_option_is_a_setting() -> None:
    """A group option sets only settings that exist."""
    known = {setting.name for section in reference.sections("train") for setting in section.settings}
    for group, options in groups.groups().items():
        for option in options:
            names = {name for name in groups.values(group, option) if not name.startswith("model.sizes.")}
            assert names <= known, f"{group}={option}"


def test_the_template_of_help_is_filled_in() -> None:
    text = help.overview("train", [])
    assert "$" not in text.replace("$HYDRAFT", "")
    config = OmegaConf.create(help.overview("infer", []).partition("Settings (key=value)\n")[2])
    assert config.max_new_tokens == 256 and "hydra" not in config
