"""hydraft installed from a wheel, in a folder that has nothing of the working copy."""

import re
import zipfile

import pytest

import installed
from conftest import ROOT
from installed import Installed

SHIPPED = "hydraft/shipped"
IN_SHIPPED = re.compile(r"\$\{root:\}/([\w./]+)")
"""A shipped file that an option names."""

SHORT = ("train.max_steps=2", "data.eval_limit=2", "train.save_minutes=null", "data.eval_max_new_tokens=4")


@pytest.fixture(scope="module")
def hydraft(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return installed.install(tmp_path_factory.mktemp("installed"))


def test_the_wheel_has_what_a_run_needs_and_nothing_else(hydraft: Installed) -> None:
    wheel = zipfile.ZipFile(hydraft.wheel)
    names = {name for name in wheel.namelist() if not name.startswith("hydraft-0.1.0.dist-info/")}
    code = {str(file.relative_to(ROOT / "src")) for file in (ROOT / "src").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == code | {f"{SHIPPED}/train.py", f"{SHIPPED}/infer.py"}
    others = {name for name in names if not name.endswith(".py")}
    options = {str(file.relative_to(ROOT)) for file in (ROOT / "conf").rglob("*.yaml") if file.parent.name != "local"}
    assert others == {
        "hydraft/py.typed", "hydraft/infer/serve/page.html",
        *_files("hydraft/models/tiny"), *_files("hydraft/board/page"), *_files("hydraft/sweep/results/page"),
        *(f"{SHIPPED}/{name}" for name in (*options, "conf/README.md", "docs/zh/settings.yaml")),
        *(f"{SHIPPED}/data/zh_tasks.{part}.json" for part in ("train", "test")),
        *(f"{SHIPPED}/data/zh_preferences.{part}.json" for part in ("train", "test")),
        f"{SHIPPED}/data/zh_general.json", f"{SHIPPED}/data/zh_general.yaml",
    }  # fmt: skip
    named = {found for name in options for found in IN_SHIPPED.findall(wheel.read(f"{SHIPPED}/{name}").decode())}
    missing = {name for name in named if f"{SHIPPED}/{name}" not in names}
    assert len(named) > 4 and missing == {"data/tiny_corpus.jsonl"}  # `make tiny` writes it, in a working copy
    assert wheel.read("hydraft-0.1.0.dist-info/entry_points.txt").decode().split() == [
        "[console_scripts]", "hydraft", "=", "hydraft.__main__:command",
    ]  # fmt: skip


def _files(folder: str) -> set[str]:
    """Those of a folder of the source, but hidden ones."""
    return {f"{folder}/{file.name}" for file in (ROOT / "src" / folder).iterdir() if file.name[0] not in "._"}


def test_own_options_come_first_and_runs_are_written_here(hydraft: Installed) -> None:
    before = sorted(hydraft.packages.rglob("*.yaml"))
    experiment = hydraft.folder / "conf" / "experiment" / "mine.yaml"
    experiment.parent.mkdir(parents=True)
    experiment.write_text("# @package _global_\n# Two steps.\nlora: {r: 4}\n")
    assert "mine" in hydraft.run("train", "--help").stdout
    planned = hydraft.run("plan", "experiment=mine", *SHORT)
    assert "lora r=4" in planned.stdout and not (hydraft.folder / "outputs").exists(), planned.stderr
    cache = hydraft.folder / "cache"
    pack = ("lora.alpha=8,16", "sweep.name=two", "hydra.launcher.pack=2", "hydra.launcher.jobs=1")
    swept = hydraft.run("sweep", "experiment=mine", *pack, *SHORT, XDG_CACHE_HOME=str(cache))
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert (hydraft.folder / "multirun" / "two" / "pack-1.log").is_file()
    assert not (cache / "torch_extensions").exists()  # the ops are those of the environment
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
