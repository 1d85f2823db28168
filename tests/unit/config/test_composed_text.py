"""``--cfg job`` prints YAML that is the composed config, marks what is not the default, and names the options of the groups."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hydraft.config import cli, composed_text, groups, moved

assert cli  # registers the schema


@pytest.mark.parametrize(
    "typed",
    [
        "lora.r=4",
        "debug=overfit experiment=zh_qa",
        "model=qwen zero=stage3_offload cluster.hosts=[a,b]",
        "data.columns={output:回答} optimizer.betas=[0.8,0.9]",
        "+cluster.slurm.options.mem='1e3' data.template={instruction}:{input}",
    ],
)
def test_it_is_the_composed_config(typed: str) -> None:
    overrides = [cli.quote(one) for one in typed.split()]
    with initialize_config_dir(str(groups.CONF), version_base="1.3"):
        composed = compose("train", overrides)
    text = composed_text.text("train", overrides, resolve=False)
    expected = moved.composed(dict(OmegaConf.to_container(composed, resolve=False, enum_to_str=True)))  # type: ignore[arg-type]
    assert OmegaConf.to_container(OmegaConf.create(text), resolve=False) == expected
    resolved = OmegaConf.to_container(OmegaConf.create(composed_text.text("train", overrides, resolve=True)))
    assert resolved == moved.composed(dict(OmegaConf.to_container(composed, resolve=True, enum_to_str=True)))  # type: ignore[arg-type]


def test_what_is_not_the_default_is_marked() -> None:
    lines = composed_text.text("train", ["lora.r=4", "experiment=zh_qa"], resolve=False).splitlines()
    assert lines[0] == "# experiment=zh_qa"
    assert {
        "  r: 4  # default: 8",
        "quant:  # quant=nf4",
        "  alpha: 16.0",
        "  learning_rate: 0.003  # default: 0.0002",
    } <= set(lines)


def test_other_command_lines_are_those_of_hydra() -> None:
    assert composed_text.requested(["lora.r=4", "--cfg", "job", "--resolve"]) == (["lora.r=4"], True)
    assert composed_text.requested(["-c", "job"]) == ([], False)
    for typed in ("--cfg hydra", "--cfg job --config-dir x", "--cfg job --package lora", "lora.r=4"):
        assert composed_text.requested(typed.split()) is None
