"""A sweep of wandb: its file, and the command line that wandb's agent builds from it, started as the agent starts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils

from conftest import run_script
from hydraft.config import score
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.sweep import wandb_sweep
from hydraft.sweep.results.ledger import begin
from hydraft.tracking import names


def test_the_command_of_an_agent_trains_one_run_that_resumes(tmp_path: Path, records: Path) -> None:
    """With wandb's default arguments, ``--lora.r=8``, which train.py takes as they come."""
    overrides = [
        "lora.r=4,8", "train.learning_rate=1e-5,1e-3", "train.gradient_checkpointing=true,false", f"data.train={records}", f"data.eval={records}",
        "data.eval_limit=2", "data.eval_max_new_tokens=2", "train.max_steps=3", "train.log_every=2",
    ]  # fmt: skip
    found, notes = wandb_sweep.definition(overrides)
    assert not notes
    found = yaml.safe_load(yaml.safe_dump(found))
    assert found["parameters"]["train.gradient_checkpointing"] == {"values": [True, False]}
    arguments = {key: {"value": axis["values"][0]} for key, axis in found["parameters"].items()}
    forms = utils.create_sweep_command_args({"args": {**arguments, "train.eval_every": {"value": None}}})
    for number, form in enumerate(("args", "args_no_hyphens")):  # the second time as an agent starts a run again
        command = [word.replace("=outputs/", f"={tmp_path}/outputs/") for word in found["command"] if word[:2] != "${"]
        environment = {
            "WANDB_SWEEP_ID": "sweep123",
            "WANDB_RUN_ID": "run4567",
            "WANDB_API_KEY": "",
            "HOME": str(tmp_path),
        }
        done = run_script("train.py", *command, *forms[form], **environment)
        assert done.returncode == 0, done.stderr
        if number:
            assert "nothing is left to do" in done.stdout
    folder = tmp_path / "outputs/sweep123/run4567"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]  # the last one too
    (file,) = folder.glob("wandb/offline-run-*/run-run4567.wandb")
    leet = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json"]
    summary = subprocess.run([*leet, "--summary", str(file)], capture_output=True, text=True, check=True).stdout
    assert f'"{found["metric"]["name"]}"' in summary
    assert "sweep123" in subprocess.run([*leet, str(file)], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["sweep=loss_memory"], "sweep.objective"),
        (["train.learning_rate=interval(1e-5,1e-3)"], "train.learning_rate: a grid has no intervals"),
        (["lora.r=8"], "nothing to search"),
        (["lora.r=4,8", "tracker=tensorboard"], "tracker=tensorboard"),
        (["lora.r=4,8", "--shuffle"], "--shuffle"),
    ],
)
def test_what_a_sweep_of_wandb_cannot_have_is_refused(overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        wandb_sweep.definition(overrides)


def test_a_search_has_its_distributions_and_stops_runs() -> None:
    found, notes = wandb_sweep.definition(["sweep=search", "lora.r=interval(4,64)", "hydra.sweeper.trials=9"])
    assert (found["method"], found["run_cap"]) == ("bayes", 9)
    assert found["parameters"]["train.learning_rate"] == {
        "distribution": "log_uniform_values",
        "min": 5e-5,
        "max": 2e-3,
    }
    assert found["parameters"]["lora.r"] == {"distribution": "int_uniform", "min": 4, "max": 64}
    assert "train.eval_every=epoch" in found["command"] and len(notes) == 1
    halving, _ = wandb_sweep.definition(["sweep=halving", "train.eval_every=10"])
    assert halving["early_terminate"] == {"type": "hyperband", "min_iter": 2, "eta": 3}


def test_names_say_model_method_and_what_differs(tmp_path: Path) -> None:
    config = Config()
    config.model.name = "tiny"
    run = tmp_path / "run"
    run.mkdir()
    typed = [
        "train.py",
        "lora.r=8",
        "train.learning_rate=1e-3",
        "+data.train=/a/b/mine.json",
        "tracker=wandb",
        "seed=1",
        "seed=2",
    ]
    (run / "environment.json").write_text(json.dumps({"command": typed}))
    assert names.title(config, run) == "tiny-lora8-stage2 · lr=1e-3, train=mine.json, seed=2"
    assert names.title(config, run, "as before") == "as before"
    config.tracker.name = "x" * 300
    assert len(names.title(config, run, "as before")) == names.LONGEST
    config.tracker.name = None
    begin(tmp_path / "sweep", {"id": "a", "name": "s", "axes": [], "direction": "minimize"})
    assert names.title(config, tmp_path / "sweep" / "r=4,lr=1e-3") == "tiny-lora8-stage2 · r=4,lr=1e-3"


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["loss"], ["loss"]),
        (["loss", "margin", "reward_accuracy"], ["loss", "margin", "reward_accuracy"]),
        (
            ["loss", "exact_match", "empty", "sentiment_accuracy"],
            ["sentiment_accuracy", "exact_match", "loss", "empty"],
        ),
        (
            ["loss", "exact_match", "empty", "qa_exact_match", "qa_f1", "sentiment_accuracy"],
            ["exact_match", "qa_exact_match", "qa_f1", "sentiment_accuracy", "loss", "empty"],
        ),
        (["loss", "accuracy", "macro_f1"], ["accuracy", "macro_f1", "loss"]),
        (
            ["loss", "exact_match", "summary_exact_match", "summary_rougel"],
            ["summary_rougel", "exact_match", "summary_exact_match", "loss"],
        ),
    ],
)
def test_the_tasks_own_score_is_first(names: list[str], order: list[str]) -> None:
    assert score.ordered(names) == order
