"""Options in ``conf/`` of the current folder: found, first, and refused if somebody else can write them."""

from pathlib import Path

import pytest

import hydraft
from hydraft.config import groups, own_options
from hydraft.errors import ConfigError


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A group of one's own options, in a folder from which commands are typed."""
    tmp_path.chmod(0o700)
    folder = tmp_path / "conf" / "lora"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return folder


def test_they_are_listed_and_win(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mine / "wide.yaml").write_text("# A wide adapter.\ndefaults: [default]\nr: 64\n")
    (mine / "default.yaml").write_text("r: 3\nalpha: 6\n")
    assert {"wide", "dora"} <= set(groups.groups()["lora"]) and groups.summary("lora", "wide") == "A wide adapter."
    assert hydraft.compose().lora.r == 3 and hydraft.compose("lora=wide").lora.r == 64
    assert hydraft.compose("lora=wide").lora.alpha == 6 and hydraft.compose("lora=dora").lora.method.value == "dora"
    own_options.report_replaced()
    assert capsys.readouterr().err == "notice: conf/ here has lora/default.yaml, in place of the shipped\n"


@pytest.mark.parametrize("place", ["conf", "conf/lora", "conf/lora/wide.yaml"])
def test_those_of_others_are_refused(mine: Path, place: str) -> None:
    (mine / "wide.yaml").write_text("r: 64\n")
    own_options.refuse_foreign()
    target = mine.parents[1] / place
    target.chmod(0o777)
    with pytest.raises(ConfigError, match=r"conf/lora/wide\.yaml: .* can be changed by others"):
        own_options.refuse_foreign()
