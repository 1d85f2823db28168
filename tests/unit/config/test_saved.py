"""A run's config as YAML: as OmegaConf itself writes it."""

from dataclasses import replace

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conftest import config_of
from hydraft.config import text
from hydraft.config.schema import Config, saved

VALUES = [
    (),
    ("quant=none", "lora.method=dora", "optimizer.betas=[0.8,0.9]", "train.save_minutes=2"),
    ("zero=stage3", "cluster=2x4", "tracker=wandb", "data.eval=null"),
    ("model=chatglm2", "lora.target_modules=[query_key_value]", "train.learning_rate=3e-5", "lora.alpha=8"),
]


def by_omegaconf(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(text.escaped(config)))


@pytest.mark.parametrize("overrides", VALUES, ids=str)
def test_every_value_is_written_as_omegaconf_writes_it(overrides: tuple[str, ...]) -> None:
    config = config_of(*overrides)
    sizes = {size: shape for size, shape in config.model.sizes.items() if size == config.model.size}
    config = replace(config, model=replace(config.model, sizes=sizes))
    assert saved(config) == by_omegaconf(config)


@pytest.mark.parametrize("value", ["a${b}", r"\${c} \\${d}", "???", "1e3", "null", "off", "- x: 中文\n#", ""])
def test_text_that_has_a_meaning_to_omegaconf_or_yaml(value: str) -> None:
    config = replace(Config(), resume=value)
    assert saved(config) == by_omegaconf(config)


def test_whole_numbers_in_settings_of_floats() -> None:
    config = config_of()
    config = replace(config, train=replace(config.train, epochs=3, save_minutes=1, max_steps=4))
    config.optimizer.betas = [0, 1]
    assert saved(config).count("  epochs: 3.0\n  max_steps: 4\n") == 1
    assert saved(config, leave_out=["model"]) == "".join(_without(by_omegaconf(config), "model"))


def _without(yaml: str, section: str) -> list[str]:
    kept, inside = [], False
    for line in yaml.splitlines(keepends=True):
        if not line.startswith((" ", "-")):
            inside = line.startswith(f"{section}:")
        kept += [] if inside else [line]
    return kept


def test_a_config_of_equal_values_is_an_object_of_its_own() -> None:
    """Sections are converted once for equal values."""
    values = text.plain(config_of())
    first, second = text.to_object(Config, values), text.to_object(Config, values)
    assert first == second == config_of()
    first.optimizer.betas.append(0.5)
    first.lora.r = 3
    assert text.to_object(Config, values) == second
    wrong = {**values, "lora": {**values["lora"], "rr": 8}}
    with pytest.raises(OmegaConfBaseException, match=r"lora\.rr"):
        text.to_object(Config, wrong)
