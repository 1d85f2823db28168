"""A person's own files survive byte for byte, wherever a command is pointed, and the refusal is one line with code 2."""

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disk import contents, fill, make_room, mounted

from conftest import ROOT, config_of
from hydraft.checkpoint import manifest
from hydraft.config import cli
from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError
from hydraft.infer.batch.journal import Journal
from hydraft.infer.export import run as export
from hydraft.infer.source import Kind, Source
from hydraft.plan.plan import make_plan
from hydraft.runs import claim, run_folder
from hydraft.sweep import sweep_folder
from hydraft.system import files
from hydraft.system.hardware import Hardware

sys.path.insert(0, str(ROOT))
import train


class Asked:
    """A command in this process: its exit code and what it printed as errors."""

    def __init__(self, *overrides: str) -> None:
        self.began = False
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as printed:
            patch.setattr(sys, "argv", ["train.py", *overrides])
            patch.setenv("HYDRA_FULL_ERROR", "1")  # run sets it
            self.code = cli.run(self.begin, "train", train.check_folder)
        self.error = printed.getvalue()

    def begin(self, composed: object) -> None:
        """In place of training."""
        self.began = True
        cli.output_folder().joinpath("config.yaml").write_text("ours")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a person's files."""
    folder = tmp_path / "own"
    for name in (
        "adapter/mine.safetensors",
        "model/weights",
        "checkpoints/step-000001/a",
        "metrics.jsonl",
        "notes.txt",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"mine: {name}".encode())
    return folder


NAMES = [
    "adapter", "model", "checkpoints", "metrics.jsonl", "notes.txt", ".git", "train.log", "rank-0.log", "result.json", "wandb",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_with_anything_of_a_persons_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    (folder / name / "deep" if "." not in name[1:] else folder).mkdir(parents=True)
    if "." in name[1:]:
        (folder / name).write_bytes(b"mine")
    why = f"hydra.run.dir={folder}: holds {name} and no run: give an empty folder, or one that is not there yet"
    with pytest.raises(ConfigError, match=re.escape(why)):
        claim.check(folder, str(folder), ".hydra")


def test_a_folder_with_a_persons_files_is_as_it_was(own: Path) -> None:
    before = contents(own)
    asked = Asked(f"hydra.run.dir={own}", "hydra.output_subdir=.hydra")
    assert asked.code == 2 and not asked.began
    assert asked.error == (
        f"train.py: hydra.run.dir={own}: holds adapter, checkpoints, metrics.jsonl and 2 more and no run: give an empty folder, or "
        "one that is not there yet\n"
    )
    assert contents(own) == before and not (own / ".hydra").exists()


@contextlib.contextmanager
def home(folder: Path) -> Iterator[None]:
    """With another working directory and another home."""
    with pytest.MonkeyPatch.context() as patch:
        (folder / "cwd").mkdir(parents=True)
        (folder / "home").mkdir()
        (folder / "link").symlink_to(folder / "home")
        (folder / "file").write_text("mine")
        patch.chdir(folder / "cwd")
        patch.setenv("HOME", str(folder / "home"))
        yield


PLACES = {
    "": "is empty", " ": "is empty", ".": "is the working directory", "/": "is the root", "..": "holds ", str(ROOT): "is the project",
    "{}/home": "is a home", "{}/link": "is a home", "../home": "is a home", "~": "the shell did not put a home there",
    "{}/file": "is a file", "{}/file/run": "Not a directory", "/proc/nowhere": "No such file", "x" * 300: "File name too long",
    "{}/run/adapter/next": "which another run replaces",
}  # fmt: skip
MADE_BY_HYDRA = ("", "{}/file/run", "/proc/nowhere")
"""Tried as whole commands: an empty value, and paths that cannot be made."""


def test_a_place_that_is_no_folder_of_its_own_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("a run's")
    with home(tmp_path):
        before = contents(tmp_path)
        for place, why in PLACES.items():
            typed = place.replace("{}", str(tmp_path))
            if place in MADE_BY_HYDRA:
                asked = Asked(f"hydra.run.dir={typed}")
                assert asked.code == 2 and not asked.began and asked.error.count("\n") == 1, place
                assert why in asked.error and asked.error.startswith(f"train.py: hydra.run.dir={typed}: "), place
                continue
            with pytest.raises(ConfigError, match=f"^hydra.run.dir={re.escape(typed)}: .*{why}"):
                claim.check(Path(os.path.abspath(typed)), typed)  # noqa: PTH100
        assert contents(tmp_path) == before and sorted(entry.name for entry in tmp_path.iterdir()) == [
            "cwd", "file", "home", "link", "run",
        ]  # fmt: skip


def test_a_folder_with_what_is_there_before_a_run_is_taken(tmp_path: Path) -> None:
    for name in ("job.log", "job.sbatch", "slurm-12.out", ".lock", ".holder.json.1", ".config.yaml"):
        (tmp_path / name).write_bytes(b"of a batch system")
    (tmp_path / ".hydra").mkdir()
    asked = Asked(f"hydra.run.dir={tmp_path}")
    assert asked.began and asked.code == 0 and asked.error == ""


def test_an_empty_folder_of_a_persons_stays(tmp_path: Path) -> None:
    """Of what a plan does not use, only the folders that it made are removed."""
    (tmp_path / "empty").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Asked, "begin", lambda *_: None)
        Asked("mode=plan", f"hydra.run.dir={tmp_path / 'empty'}")
        Asked("mode=plan", f"hydra.run.dir={tmp_path / 'a/b/c'}")
    assert (tmp_path / "empty").is_dir() and not (tmp_path / "a").exists()


def test_a_sweeps_folder_with_a_persons_files_is_refused(own: Path) -> None:
    before = contents(own)
    for typed, why in {str(own): "holds something other than a sweep", "": "is empty", "/": "is the root"}.items():
        asked = Asked("-m", "lora.r=4,8", f"hydra.sweep.dir={typed}")
        assert asked.code == 2 and why in asked.error and f"hydra.sweep.dir={typed}" in asked.error
    assert contents(own) == before and not (own / ".ledger.lock").exists()
    assert sweep_folder.UNSAFE.search("a/b")  # sweep.name is one folder's name


def test_what_another_config_has_trained_is_not_touched(tmp_path: Path) -> None:
    config = config_of("lora.r=4")
    run_folder.create(tmp_path / "run", config, make_plan(config, 8), Hardware())
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1}\n')
    before = contents(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Asked, "begin", lambda _, composed: train.train(composed))
        asked = Asked("lora.r=8", f"hydra.run.dir={tmp_path / 'run'}")
    assert asked.code == 2 and "a run is in it already, with lora.r=4, not 8" in asked.error
    (tmp_path / "run/config.yaml").write_text("# my own notes\nmodel_name: llama\n")
    before |= contents(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Asked, "begin", lambda _, composed: train.train(composed))
        asked = Asked(f"hydra.run.dir={tmp_path / 'run'}")
    assert asked.code == 2 and asked.error.count("\n") == 1
    assert f"hydra.run.dir={tmp_path / 'run'}" in asked.error and "is not a run's config" in asked.error
    assert contents(tmp_path) == before


def test_a_batch_and_an_export_leave_files_that_are_not_theirs(tmp_path: Path) -> None:
    part, summary, hidden = (tmp_path / name for name in ("a.jsonl.part", "b.summary.json", ".out.settings"))
    part.write_text('{"my": "download"}\nnot finished')
    summary.write_text('{"my": "summary"}')
    hidden.mkdir()
    (hidden / "mine").write_text("mine")
    before = contents(tmp_path)
    for name, why in {"a.jsonl": "is not the journal of a batch", "b.jsonl": "is not of a batch"}.items():
        with pytest.raises(ConfigError, match=f"output=.*{name}: .* {why}"):
            Journal(tmp_path / name, "key")
    source = Source(Kind.adapter, tmp_path, "n", *[None] * 4)  # type: ignore[arg-type]
    for output in ("/", "", ".", "..", str(hidden)):
        with pytest.raises(ConfigError, match="exists; name a folder that does not exist"):
            export.run([source], InferConfig(output=output))
    for name in ("out", "*", "[a-z]*"):
        with export._exclusive(tmp_path / name):
            pass
    assert contents(tmp_path) == before


def test_files_that_are_added_to_an_adapter_are_kept_when_it_is_written_again(tmp_path: Path) -> None:
    target = tmp_path / "adapter"

    def write(names: list[str]) -> None:
        with files.staged_folder(target, manifest.listed) as staging:
            for name in names:
                (staging / name).write_text("new")
            manifest.seal(staging)

    write(["weights-1", "weights-2"])
    (target / "probe.json").write_text("of the run")
    (target / "notes.txt").write_bytes(b"mine")
    (target / "plots").mkdir()
    (target / "plots/a.png").write_bytes(b"mine too")
    write(["weights-1"])
    assert {file: data for file, data in contents(target).items() if b"mine" in data} == {
        "notes.txt": b"mine", "plots/a.png": b"mine too",
    }  # fmt: skip
    assert sorted(entry.name for entry in target.iterdir()) == ["manifest.json", "notes.txt", "plots", "weights-1"]
    target.rename(tmp_path / ".adapter.staging-00000000.old")  # killed between two names
    files.clear_staging(target)
    assert json.loads((target / "manifest.json").read_text()) and [entry.name for entry in tmp_path.iterdir()] == [
        "adapter"
    ]


def test_a_folder_that_cannot_be_written_to_is_refused_in_one_line(tmp_path: Path) -> None:
    """A read-only file system, and one that is full at the start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Asked, "begin", lambda _, composed: train.train(composed))
        with mounted(tmp_path / "full", "64k") as disk:
            (disk / "run").mkdir()
            fill(disk)
            for folder in (disk / "run", disk / "new/run"):
                asked = Asked(f"hydra.run.dir={folder}")
                assert asked.code == 2 and asked.error.count("\n") == 1 and "hydra.run.dir=" in asked.error
                assert "No space left on device" in asked.error and "free space there" in asked.error
                assert list(contents(disk)) == []
            make_room(disk)
        with mounted(tmp_path / "ro", "64k", ",ro") as disk:
            for arguments in (
                [f"hydra.run.dir={disk}"],
                [f"hydra.run.dir={disk}/a/b"],
                ["-m", "lora.r=4,8", f"hydra.sweep.dir={disk}/s"],
            ):
                asked = Asked(*arguments)
                assert asked.code == 2 and asked.error.count("\n") == 1, asked.error
                assert "Read-only file system" in asked.error and arguments[-1].partition("=")[0] in asked.error


def test_what_is_written_has_the_permissions_that_the_umask_allows(tmp_path: Path) -> None:
    config = config_of("lora.r=4")
    for umask in (0o077, 0o027, 0o022, 0o002):
        before = os.umask(umask)
        try:
            folder = tmp_path / f"{umask:o}"
            run_folder.create(folder, config, make_plan(config, 8), Hardware())
            with files.staged_folder(folder / "adapter") as staging:
                (staging / "inner").mkdir()
                os.close(os.open(staging / "inner/weights", os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors does
            run_folder.describe(folder, config, make_plan(config, 8), Hardware())
            Journal(folder / "answers.jsonl", "key").close([], {})
        finally:
            os.umask(before)
        for entry in (folder, *folder.rglob("*")):
            assert entry.stat().st_mode & 0o777 == (0o777 if entry.is_dir() else 0o666) & ~umask, entry
