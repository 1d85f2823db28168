"""conf/local/: a machine's own settings win over groups and experiments, lose to the command line, and a line says so."""

import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from hydraft.config import cli, groups

OWN = """# @package _global_
# This machine.
defaults:
  - override /tracker: tensorboard
cluster: {hosts: [a, b]}
train: {epochs: 5}
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    shutil.copytree(groups.CONF, tmp_path / "conf", ignore=shutil.ignore_patterns("local"))
    return tmp_path / "conf"


def composed(conf: Path, name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(conf), version_base="1.3"):
        found = compose(name, list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(found)
    return found


def test_it_wins_over_groups_and_loses_to_the_command_line(conf: Path) -> None:
    assert composed(conf, "train").tracker.kind.value == "none" and cli.local_settings() == []
    (conf / "local").mkdir()
    (conf / "local" / "default.yaml").write_text(OWN)
    (conf / "local" / "infer.yaml").write_text("# @package _global_\ntop_k: 7\n")
    found = composed(conf, "train", "experiment=zh_qa")
    assert (found.tracker.kind.value, list(found.cluster.hosts), found.train.epochs) == ("tensorboard", ["a", "b"], 5)
    assert cli.local_settings() == ["conf/local/default.yaml sets cluster.hosts, train.epochs"]
    typed = composed(conf, "train", "tracker=none", "train.epochs=1", "cluster.hosts=[]")
    assert (typed.tracker.kind.value, list(typed.cluster.hosts), typed.train.epochs) == ("none", [], 1)
    assert composed(conf, "train", "debug=fast").tracker.kind.value == "none"
    assert composed(conf, "infer", "run=last").top_k == 7
    assert cli.local_settings() == ["conf/local/infer.yaml sets top_k"]
