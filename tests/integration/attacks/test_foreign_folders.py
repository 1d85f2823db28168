"""A run's folder that another user has written: nothing in it is run, contacted or resolved, unless this command line asks for it."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command_line
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from conftest import config_of, run_script
from hydraft.config import cli, foreign, mistakes
from hydraft.config.choices import InferMode, Kernels, Launcher, TrackerKind
from hydraft.config.infer import InferConfig
from hydraft.config.schema import Config, load_config, save_config
from hydraft.errors import ConfigError
from hydraft.infer.resolve import find
from hydraft.launch.remote import hosts
from hydraft.models import base_identity
from hydraft.runs import resume
from hydraft.sweep.search_space import make_space
from hydraft.sweep.study import Method, Search
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


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The one line with which a command ends with code 2; no variable's value is in it."""

    def line_of(*arguments: str, command: str = "train") -> str:
        monkeypatch.setenv("HYDRAFT_CANARY", SECRET)
        line = command_line.refused(monkeypatch, command, *arguments)
        assert SECRET not in line
        return line

    return line_of


ALWAYS = (
    "cluster.hosts", "cluster.ssh_config", "cluster.python", "cluster.workdir", "cluster.env", "cluster.slurm.setup",
    "cluster.slurm.account", "+cluster.slurm.options.wrap", "model.trust_remote_code=true", "model.path", "model.revision",
    "tracker.kind=wandb", "tracker.project", "tracker.group", "tracker.upload=true", "kernels.kind=liger",
)  # fmt: skip
"""What a hostile config has, in every mode; ``mode=train`` reads files, too."""


def test_a_resumed_config_of_another_user_runs_nothing(tmp_path: Path, refused: Callable[..., str]) -> None:
    canary, folder = tmp_path / "canary", tmp_path / "run"
    save_config(hostile(canary, folder), folder / "config.yaml")
    before = sorted(given_away(folder).rglob("*"))
    for mode in ("plan", "preview", "train"):
        line = refused(f"resume={folder}", f"mode={mode}")
        assert f"{folder} belongs to nobody" in line
        missing = [name for name in ALWAYS if f" {name}" not in line and f" '{name}" not in line]
        assert missing == []
        assert all((f"data.{name}=" in line) is (mode == "train") for name in ("train", "eval", "mix"))
        assert not canary.exists() and sorted(folder.rglob("*")) == before
    done = run_script("train.py", f"resume={folder}", "mode=plan")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


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
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)  # this user's
    foreign.refuse(load_config(copied / "config.yaml"), {}, copied)
    with pytest.raises(ConfigError, match="belongs to nobody"):
        foreign.refuse(load_config(folder / "config.yaml"), {}, folder)


def test_what_is_repeated_counts_and_the_rest_is_as_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: Callable[..., str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    config = config_of("quant=none", "lora.r=3")
    config.cluster.slurm.options = {"mem": "1G"}
    config.cluster.env = ["A", "b c"]
    config.cluster.launcher = Launcher.slurm
    save_config(config, folder / "config.yaml")
    given_away(folder)
    first = refused(f"resume={folder}", "mode=plan", "cluster=slurm_1x4")
    assert "+cluster.slurm.options.mem=1G" in first and "cluster.env" not in first  # the group has no options of sbatch
    listed = [
        "cluster.launcher=slurm", "cluster.env=['A','b c']", "+cluster.slurm.options.mem=1G",
    ]  # fmt: skip
    assert all(one in refused(f"resume={folder}", "mode=plan").replace("'\"'\"'", "'") for one in listed)
    typed = [f"resume={folder}", "mode=plan", *listed]
    found: list[Config] = []
    code, _ = command_line.ended(
        monkeypatch, "train", *typed, task=lambda composed: found.append(resume.merged(composed, cli.overrides())[0])
    )
    assert code == 0 and (found[0].lora.r, found[0].cluster.env) == (3, ["A", "b c"])
    save_config(config_of("quant=none", "lora.r=3"), folder / "config.yaml")  # without effects: resumed as one's own
    foreign.refuse(load_config(folder / "config.yaml"), dataclasses.asdict(config_of()), folder)


WRITTEN: dict[str, Callable[[dict[str, Any]], None]] = {
    "${oc.env:HYDRAFT_CANARY}": lambda values: values["model"].update(path="${oc.env:HYDRAFT_CANARY}"),
    "${oc.decode:${oc.env:HYDRAFT_CANARY}}": lambda values: values.update(seed="${oc.decode:${oc.env:HYDRAFT_CANARY}}"),
    "${hydra:runtime.cwd}": lambda values: values["data"].update(train="${hydra:runtime.cwd}"),
    "${root:}": lambda values: values["data"].update(mix=["a", "\\\\${root:}"]),
    "${model.name}": lambda values: values["tracker"].update(project="x${model.name}"),
}


def test_no_interpolation_is_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setenv("HYDRAFT_CANARY", SECRET)
    file = tmp_path / "run" / "config.yaml"
    file.parent.mkdir()
    for written, change in WRITTEN.items():
        values = json.loads(json.dumps(dataclasses.asdict(config_of()), default=lambda choice: choice.value))
        change(values)
        file.write_text(json.dumps(values))
        with pytest.raises(ConfigError, match="an interpolation, which a saved config does not have") as error:
            load_config(file)
        assert written in str(error.value) and SECRET not in str(error.value)
    given_away(file.parent)
    line = refused(f"resume={file.parent}", "mode=plan")
    assert "tracker.project: x${model.name}: an interpolation" in line


def test_an_object_an_alias_or_a_pipe_is_not_read(tmp_path: Path, refused: Callable[..., str]) -> None:
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
    assert "not a run's folder" in refused(f"resume={tmp_path}")


def test_a_run_in_another_users_folder_writes_through_no_link(tmp_path: Path, refused: Callable[..., str]) -> None:
    folder, precious = tmp_path / "run", tmp_path / "precious"
    folder.mkdir()
    precious.write_text("mine")
    save_config(config_of("quant=none"), folder / "config.yaml")
    (folder / "metrics.jsonl").symlink_to(precious)
    given_away(folder)
    assert "metrics.jsonl is a symbolic link" in refused(f"resume={folder}")
    (folder / "metrics.jsonl").unlink()
    (folder / "wandb").mkdir()
    (folder / "wandb" / "settings").write_text("[default]\nbase_url = http://127.0.0.1:1\n")
    line = refused(f"resume={folder}", "tracker=wandb")
    assert "wandb/settings names a server of wandb" in line
    assert precious.read_text() == "mine" and TINY.exists()


def test_the_code_of_a_base_is_named_on_the_command_line(tmp_path: Path, refused: Callable[..., str]) -> None:
    """run= of another's adapter: by what it records, by its adapter_config.json, and with another method of peft."""
    canary, base, folder = tmp_path / "canary", tmp_path / "base", tmp_path / "run" / "adapter"
    shutil.copytree(TINY, base)
    code = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**settings, "model_type": "evil", "auto_map": code}))
    (base / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    written = {"peft_type": "LORA", "base_model_name_or_path": str(base)}
    config = dataclasses.replace(
        config_of(), model=dataclasses.replace(config_of().model, path=str(base), trust_remote_code=True)
    )
    origin = {"${oc.env:HYDRAFT_CANARY}": 1, **base_identity.of(config)}
    (folder / "adapter_config.json").write_text(json.dumps(written))
    given_away(folder.parent)
    with pytest.raises(ConfigError, match=f"belongs to nobody.*base={base}"):
        find(InferConfig(run=str(folder), trust_remote_code=True))
    for name, content in {base_identity.NAME: origin}.items():
        (folder / name).write_text(json.dumps(content, default=str))
        save_config(config, folder.parent / "config.yaml")
        for place in (folder, given_away(folder.parent)):
            for mode in ("generate", "export"):
                options = InferConfig(run=str(place), mode=InferMode[mode], trust_remote_code=True)
                with pytest.raises(ConfigError, match=f"belongs to nobody.*name it on the command line: base={base}"):
                    find(options)
    line = refused(f"run={folder}", "prompt=x", "trust_remote_code=true", command="infer")
    assert f"base={base}" in line and not canary.exists()
    for name, content, reason in (
        ("adapter_config.json", {**written, "peft_type": "XLORA"}, "only LoRA and VeRA adapters can be used"),
        (base_identity.NAME, "[" * 100_000, "is damaged"),
    ):
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(ConfigError, match=reason):
            find(InferConfig(run=str(folder)))
        (folder / "adapter_config.json").write_text(json.dumps(written))


def test_a_search_in_another_users_folder_reads_no_pickle(tmp_path: Path) -> None:
    space = make_space(
        OverridesParser.create().parse_overrides(["train.learning_rate=interval(1e-5,1e-3)"]),
        OmegaConf.create({"train": {"learning_rate": 1e-4}}),
    )
    method = Method(trials=9, sampler="cmaes")
    Search(tmp_path / "own", space, ["loss"], method)
    Search(tmp_path / "own", space, ["loss"], method)  # goes on
    given_away(tmp_path / "own")
    with pytest.raises(ConfigError, match=r"belongs to nobody.*would read pickles"):
        Search(tmp_path / "own", space, ["loss"], method)
    Search(tmp_path / "own", space, ["loss"], Method(trials=9, sampler="tpe"))


def test_files_of_others_in_the_working_directory_are_named_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hostfile").write_text("evil-1 slots=1\nevil-2 slots=1\n")
    os.chown("hostfile", SOMEONE, SOMEONE)
    cluster = dataclasses.replace(config_of().cluster, nodes=2)
    with pytest.raises(ConfigError, match=r"belongs to nobody: to use its hosts give cluster.hostfile=hostfile"):
        hosts.choose(cluster)
    assert len(hosts.choose(dataclasses.replace(cluster, hostfile="hostfile"))) == 2
    Path("conf/zero").mkdir(parents=True)
    given_away(Path("conf"))
    for typed in (["--config-dir", "conf"], ["--config-dir=conf"], ["-cd", "conf"], ["--config-path", "conf"]):
        with pytest.raises(ConfigError, match="belongs to nobody, and a folder of options decides what is run"):
            mistakes.refuse(typed, "train")
    with pytest.raises(ConfigError, match="reads a pickle"):
        mistakes.refuse(["--experimental-rerun", "config.pickle"], "train")


def test_python_m_does_not_import_from_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("open('canary', 'w')\n")
    command = [sys.executable, "-m", "hydraft", "report", "nothing"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not (tmp_path / "canary").exists(), done.stderr
