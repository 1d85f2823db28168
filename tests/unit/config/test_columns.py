"""``data.columns`` and ``columns`` are typed as a dict or key by key, and take known names only."""

import pytest
from hydra import compose, initialize_config_dir

from conftest import ROOT, config_of
from hydraft.config import bounds, cli
from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError


@pytest.mark.parametrize(
    "typed",
    [
        ["data.columns={instruction: question, output: answer}"],
        ["data.columns={instruction:question,output:answer}"],
        ["+data.columns={instruction: question, output: answer}"],
        ["++data.columns={instruction: question, output: answer}"],
        ["data.columns.instruction=question", "data.columns.output=answer"],
        ["+data.columns.instruction=question", "data.columns={output: answer}"],
    ],
)
def test_the_natural_ways_work(typed: list[str]) -> None:
    assert config_of(*typed).data.columns == {"instruction": "question", "output": "answer"}


def test_infer_has_the_setting_too() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("infer", ["run=x", "columns={instruction: question}"])
    assert cli.typed(composed, InferConfig).columns == {"instruction": "question"}


@pytest.mark.parametrize("typed", ["{question: instruction}", "{instruction: q, output: q}", "{instruction: ''}"])
def test_other_names_are_refused_with_the_known_ones(typed: str) -> None:
    with pytest.raises(
        ConfigError, match=r"^data\.columns=.*: must be \{name: key of the records\}.*instruction, input"
    ):
        bounds.check(config_of(f"data.columns={typed}"))
