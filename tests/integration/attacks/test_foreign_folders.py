"""A run's folder that another user has written: nothing in it is run, contacted or resolved, unless this command line asks for it."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import config_of, run_script
from hydraft.config.choices import Kernels, Launcher, TrackerKind
from hydraft.config.schema import Config, load_config, save_config
from hydraft.errors import ConfigError
from hydraft.system.source_tree import TINY

SOMEONE = 65534
SECRET = "hydraft-canary-a41c"
"""The value of a variable that must not appear anywhere."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder to another user needs root")


def hostile(canary: Path, folder: Path) -> Config:
    """A config whose effects each leave ``canary``."""
    folder.mkdir()
    (folder / "ssh_config").write_text(f"Host *\n  ProxyCommand touch {canary}\n  ConnectTimeout 3\n")
    python = folder / "python"
    python.write_text(f"#!/bin/sh\ntouch {canary}\n")
    python.chmod(0o755)
    config = config_of("quant=none", f"hydra.run.dir={folder}")
    cluster = dataclasses.replace(
        config.cluster,
        nodes=2,
        hosts=["evil-1", "evil-2"],
        ssh_config=str(folder / "ssh_config"),
        python=str(python),
        workdir=str(folder),
        env=["HYDRAFT_CANARY"],
    )
    cluster.slurm = dataclasses.replace(
        cluster.slurm, setup=[f"touch {canary}"], options={"wrap": f"touch {canary}"}, account="boss"
    )
    model = dataclasses.replace(config.model, trust_remote_code=True, path="someone/model", revision="f" * 40)
    tracker = dataclasses.replace(config.tracker, kind=TrackerKind.wandb, project="theirs", group="g", upload=True)
    data = dataclasses.replace(config.data, train="/etc/passwd", eval="/etc/shadow", mix=["/etc/group*1"])
    kernels = dataclasses.replace(config.kernels, kind=Kernels.liger)
    return dataclasses.replace(config, cluster=cluster, model=model, tracker=tracker, data=data, kernels=kernels)


def given_away(folder: Path) -> Path:
    """``folder`` and all in it as another user's."""
    for place in (folder, *folder.rglob("*")):
        os.chown(place, SOMEONE, SOMEONE, follow_symlinks=False)
    return folder


def refused(script: str, *arguments: str) -> str:
    """The one line with which ``script`` ends with code 2; no variable's value is in it."""
    done = run_script(script, *arguments, HYDRAFT_CANARY=SECRET)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert SECRET not in done.stderr
    return done.stderr


ALWAYS = (
    "cluster.hosts", "cluster.ssh_config", "cluster.python", "cluster.workdir", "cluster.env", "cluster.slurm.setup",
    "cluster.slurm.account", "+cluster.slurm.options.wrap", "model.trust_remote_code=true", "model.path", "model.revision",
    "tracker.kind=wandb", "tracker.project", "tracker.group", "tracker.upload=true", "kernels.kind=liger",
)  # fmt: skip
"""What a hostile config has, in every mode; ``mode=train`` reads files, too."""


@pytest.mark.parametrize("mode", ["plan", "preview", "train"])
def test_a_resumed_config_of_another_user_runs_nothing(mode: str, tmp_path: Path) -> None:
    canary, folder = tmp_path / "canary", tmp_path / "run"
    save_config(hostile(canary, folder), folder / "config.yaml")
    before = sorted(given_away(folder).rglob("*"))
    line = refused("train.py", f"resume={folder}", f"mode={mode}")
    assert f"{folder} belongs to nobody" in line
    missing = [name for name in ALWAYS if f" {name}" not in line and f" '{name}" not in line]
    assert missing == []
    assert all((f"data.{name}=" in line) is (mode == "train") for name in ("train", "eval", "mix"))
    assert not canary.exists() and sorted(folder.rglob("*")) == before


def test_the_same_config_in_an_own_folder_is_used(tmp_path: Path) -> None:
    canary, folder = tmp_path / "canary", tmp_path / "run"
    config = hostile(canary, folder)
    plain = dataclasses.replace(config, model=config_of().model, data=config_of().data, tracker=config_of().tracker)
    save_config(dataclasses.replace(plain, kernels=config_of().kernels), folder / "config.yaml")
    done = run_script("train.py", f"resume={folder}", "mode=plan")
    assert "belongs to" not in done.stderr
    assert canary.exists()  # the attack works, and on one's own folder that is no attack
    canary.unlink()
    given_away(folder)
    moved = tmp_path / "copied"
    shutil.copytree(folder, moved)  # a copy is this user's
    assert "belongs to" not in run_script("train.py", f"resume={moved}", "mode=plan").stderr and canary.exists()


def test_what_is_repeated_counts_and_the_rest_is_as_saved(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    config = config_of("quant=none", "lora.r=3")
    config.cluster.slurm.options = {"mem": "1G"}
    config.cluster.env = ["A", "b c"]
    config.cluster.launcher = Launcher.slurm
    save_config(config, folder / "config.yaml")
    given_away(folder)
    first = refused("train.py", f"resume={folder}", "mode=plan", "cluster=slurm_1x4")
    assert "+cluster.slurm.options.mem=1G" in first and "cluster.env" not in first  # the group has no options of sbatch
    listed = [
        "cluster.launcher=slurm", "cluster.env=['A','b c']", "+cluster.slurm.options.mem=1G",
    ]  # fmt: skip
    assert all(one in refused("train.py", f"resume={folder}", "mode=plan").replace("'\"'\"'", "'") for one in listed)
    done = run_script("train.py", f"resume={folder}", "mode=plan", *listed)
    assert done.returncode == 0 and "r 3" in done.stdout.replace("=", " "), done.stderr
    unneeded = config_of("quant=none", "lora.r=3")  # without effects another's run is resumed as one's own
    save_config(unneeded, folder / "config.yaml")
    assert run_script("train.py", f"resume={folder}", "mode=plan").returncode == 0


WRITTEN: dict[str, Callable[[dict[str, Any]], None]] = {
    "${oc.env:HYDRAFT_CANARY}": lambda values: values["model"].update(path="${oc.env:HYDRAFT_CANARY}"),
    "${oc.decode:${oc.env:HYDRAFT_CANARY}}": lambda values: values.update(seed="${oc.decode:${oc.env:HYDRAFT_CANARY}}"),
    "${hydra:runtime.cwd}": lambda values: values["data"].update(train="${hydra:runtime.cwd}"),
    "${root:}": lambda values: values["data"].update(mix=["a", "\\\\${root:}"]),
    "${model.name}": lambda values: values["tracker"].update(project="x${model.name}"),
}


@pytest.mark.parametrize("own", [True, False])
def test_no_interpolation_is_resolved(own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRAFT_CANARY", SECRET)
    file = tmp_path / "run" / "config.yaml"
    file.parent.mkdir()
    for written, change in WRITTEN.items():
        values = json.loads(json.dumps(dataclasses.asdict(config_of()), default=lambda choice: choice.value))
        change(values)
        file.write_text(json.dumps(values))
        if not own:
            given_away(file.parent)
        with pytest.raises(ConfigError, match="an interpolation, which a saved config does not have") as error:
            load_config(file)
        assert written in str(error.value) and SECRET not in str(error.value)
    line = refused("train.py", f"resume={file.parent}", "mode=plan")
    assert "tracker.project: x${model.name}: an interpolation" in line


def test_an_object_an_alias_or_a_pipe_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    canary = tmp_path / "canary"
    bomb = "a0: &a0 [x, x]\n" + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))
    for text, reason in {
        f"seed: !!python/object/apply:os.system ['touch {canary}']": "could not determine a constructor",
        bomb: "it has an alias",
        "seed: " + "[" * 100_000: "recursion",
        "": "it is empty",
        "- seed": "it is no mapping",
        "# " + "x" * 5_000_000: "it is larger than",
        "seed: 1\nseed: 2": "found duplicate key",
        "_target_: os.system": "Key '_target_' not in 'Config'",
    }.items():
        file.write_text(text)
        with pytest.raises(ConfigError, match=reason):
            load_config(file)
    assert not canary.exists()
    file.unlink()
    os.mkfifo(file)  # opening it would wait for ever
    assert "not a run's folder" in refused("train.py", f"resume={tmp_path}")


def test_a_run_in_another_users_folder_writes_through_no_link(tmp_path: Path) -> None:
    folder, precious = tmp_path / "run", tmp_path / "precious"
    folder.mkdir()
    precious.write_text("mine")
    save_config(config_of("quant=none"), folder / "config.yaml")
    (folder / "metrics.jsonl").symlink_to(precious)
    given_away(folder)
    assert "metrics.jsonl is a symbolic link" in refused("train.py", f"resume={folder}")
    (folder / "metrics.jsonl").unlink()
    (folder / "wandb").mkdir()
    (folder / "wandb" / "settings").write_text("[default]\nbase_url = http://127.0.0.1:1\n")
    line = refused("train.py", f"resume={folder}", "tracker=wandb")
    assert "wandb/settings names a server of wandb" in line
    assert precious.read_text() == "mine" and TINY.exists()
