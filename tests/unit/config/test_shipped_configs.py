"""Every option of every group, and every experiment, gives a valid Config."""

from pathlib import Path

import pytest

from conftest import ROOT, config_of
from hydraft.config import rules
from hydraft.config.schema import Config, load_config, save_config
from hydraft.errors import ConfigError

OPTIONS = sorted(
    (folder.name, file.stem)
    for folder in (ROOT / "conf").iterdir()
    if folder.is_dir() and folder.name not in ("hydra", "experiment")
    for file in folder.glob("*.yaml")
)
NEEDS = {  # settings that an option needs
    "lora=pissa": ["quant=none"],
    "lora=none": ["quant=none"],
    "model=auto": ["model.path=owner/name"],
    "optimizer=adafactor": ["zero=stage0"],
    "optimizer=paged_adamw_8bit": ["mode=plan"],  # a GPU
    "zero=stage3_nvme": ["zero.nvme_path=/var/tmp"],
    "zero=stage3_hpz": ["cluster=2x4", "cluster.hosts=[a,b]"],
    "kernels=liger": ["mode=plan"],  # a GPU
    "kernels=unsloth": ["mode=plan"],
}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_gives_a_valid_config(group: str, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "find_spec", lambda name: True)  # of packages that are rarely all installed
    override = f"{group}={option}"
    config = config_of(override, *NEEDS.get(override, []))
    assert isinstance(config, Config)


@pytest.mark.parametrize("file", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda file: file.stem)
def test_each_file_describes_its_use_and_is_short(file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 30
    assert any(line.startswith("# ") and not line.startswith("# @package") for line in lines[:2])
    assert "_target_" not in file.read_text(encoding="utf-8")


def test_a_config_round_trips(tmp_path: Path) -> None:
    config = config_of("lora=dora", "optimizer.betas=[0.8,0.99]", "data.eval=null", "train.max_steps=7")
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_a_file_that_is_not_a_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("train: {epochs: many}")
    with pytest.raises(ConfigError, match="not a run's config"):
        load_config(tmp_path / "config.yaml")


def test_an_experiment_overrides_its_groups_and_the_command_line_overrides_it() -> None:
    with pytest.raises(ConfigError, match="needs a GPU"):
        config_of("experiment=llama3_unsloth_zero2")
    config = config_of("experiment=llama3_unsloth_zero2", "kernels=torch", "lora.r=4")
    assert (config.lora.alpha, config.lora.r, config.train.gradient_accumulation_steps) == (32, 4, 4)
