"""Text that is typed beside ``resume=`` arrives as it was typed, and so does that of the saved config."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from conftest import config_of
from hydraft.config import groups
from hydraft.config.schema import Config, load_config, save_config
from hydraft.config.typed_text import quote
from hydraft.errors import ConfigError
from hydraft.runs import resume

TYPED = ["model.revision=???", "data.name=价格${price}元", "cluster.slurm.setup=[1e3,${x}]", "data.eval=a.json"]


def merged(folder: Path, *typed: str) -> Config:
    """The config of the run in ``folder`` with other overrides."""
    overrides = [quote(one) for one in (f"resume={folder}", *typed)]
    with initialize_config_dir(str(groups.CONF), version_base="1.3"):
        return resume.merged(compose("train", overrides), overrides)[0]


def test_saved_and_typed_text_arrives(tmp_path: Path) -> None:
    save_config(config_of(*map(quote, TYPED)), tmp_path / "config.yaml")
    saved = merged(tmp_path)
    assert (saved.model.revision, saved.data.name) == ("???", "价格${price}元")
    assert saved.cluster.slurm.setup == ["1e3", "${x}"] and saved.data.eval == "a.json"
    changed = merged(
        tmp_path, "cluster.slurm.setup=[???,007]", "data.eval=${a}.json", "tracker.group=???", "zero=stage3"
    )
    assert changed.cluster.slurm.setup == ["???", "007"]
    assert (changed.data.eval, changed.tracker.group, changed.zero.stage) == ("${a}.json", "???", 3)


def test_null_replaces_what_is_saved(tmp_path: Path) -> None:
    save_config(config_of(*map(quote, TYPED)), tmp_path / "config.yaml")
    assert merged(tmp_path, "data.eval=null").data.eval is None


def test_a_config_without_a_value_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    save_config(config_of(), file)
    lines = [line for line in file.read_text().splitlines() if not line.startswith("  path:")]
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"is not a run's config: it has no model\.path"):
        load_config(file)
