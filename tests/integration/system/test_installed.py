"""hydraft installed from a wheel, in a folder that has nothing of the working copy."""

import zipfile
from pathlib import Path

import pytest

import installed
from installed import Installed

SHORT = ("train.max_steps=2", "data.eval_limit=2", "train.save_minutes=null", "data.eval_max_new_tokens=4")


@pytest.fixture(scope="module")
def hydraft(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return installed.install(tmp_path_factory.mktemp("installed"))


def test_the_wheel_has_what_a_run_needs_and_nothing_else(hydraft: Installed) -> None:
    names = set(zipfile.ZipFile(hydraft.wheel).namelist())
    needed = ("train.py", "infer.py", "conf/train.yaml", "conf/model/tiny.yaml", "conf/hydra/help/train.yaml")
    assert {
        f"hydraft/shipped/{name}" for name in (*needed, "data/zh_tasks.train.json", "docs/zh/settings.yaml")
    } <= names
    others = ("hydraft/py.typed", "hydraft/models/tiny/model.safetensors", "hydraft/board/page/index.html")
    assert set(others) <= names and any(name.startswith("hydra_plugins/hydraft_pool/") for name in names)
    top = {name.split("/")[0] for name in names}
    assert top == {"hydraft", "hydra_plugins", f"{hydraft.wheel.name.rsplit('-', 3)[0]}.dist-info"}
    assert not [
        name for name in names if "conf/local/" in name or "__pycache__" in name or "test" in Path(name).name[:5]
    ]


def test_own_options_come_first_and_runs_are_written_here(hydraft: Installed) -> None:
    before = sorted(hydraft.packages.rglob("*.yaml"))
    experiment = hydraft.folder / "conf" / "experiment" / "mine.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text("# @package _global_\n# Two steps.\nlora: {r: 4}\n")
    assert "mine" in hydraft.run("train", "--help").stdout
    planned = hydraft.run("plan", "experiment=mine", *SHORT)
    assert "lora r=4" in planned.stdout and not (hydraft.folder / "outputs").exists(), planned.stderr
    swept = hydraft.run("sweep", "experiment=mine", "seed=1,2", "sweep.name=two", *SHORT)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert "hydraft infer run=" in swept.stdout and "train.py" not in swept.stdout + swept.stderr
    assert hydraft.run("report", "multirun/two").returncode == 0
    assert (hydraft.folder / "multirun" / "two" / "report.html").is_file()
    asked = hydraft.run("infer", "run=best", "prompt=你好", "max_new_tokens=2")
    assert asked.returncode == 0, asked.stderr
    assert sorted(hydraft.packages.rglob("*.yaml")) == before


def test_what_is_refused_names_the_command(hydraft: Installed) -> None:
    wrong = hydraft.run("train", "lora.rank=8")
    assert wrong.returncode == 2 and wrong.stderr.startswith("hydraft train: lora.rank")
    missing = hydraft.run("train", "tracker=swanlab")
    assert missing.returncode == 2 and "pip install 'hydraft[swanlab]'" in missing.stderr
    assert hydraft.run("lora.r=4").returncode == 2
