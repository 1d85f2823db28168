"""The quantised copy in the cache: made once by a process of its own, whole or not at all, and left out where there is no room for it."""

import dataclasses
import functools
import io
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import small_disk
from rich.console import Console

import stored
from conftest import SCALE, completed, config_of, run_script, start_script
from forks import run_forks
from hydraft.config.choices import Precision, QuantKind
from hydraft.config.model import ModelConfig
from hydraft.config.schema import QuantConfig
from hydraft.models import prepare, quantise, quantised_copy
from hydraft.models.load import load_base
from hydraft.models.quantised_copy import Job, Storage, is_copy, storage
from hydraft.system.console import Screen
from hydraft.system.plain_console import PlainConsole
from hydraft.training import native_model
from published import contents

SECONDS = 120 * SCALE


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYDRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def wanted(model: ModelConfig, double: bool = True) -> Storage | None:
    return storage(model, QuantConfig(QuantKind.nf4, double), Precision.bf16)


def native(model: ModelConfig, verified: bool = False) -> tuple[ModelConfig, str]:
    """The section of a run in NF4, and what was printed."""
    screen = io.StringIO()
    console: Console = PlainConsole(file=screen, width=200)
    return prepare.native(model, 0, console, verified, storage=wanted(model)), screen.getvalue()


def section(folder: Path) -> ModelConfig:
    return ModelConfig(name="mine", path=str(folder), cache_quantised=True)


def copies(place: Path) -> list[str]:
    """What is in the cache, but for locks and seals."""
    found = (place / "models").iterdir() if (place / "models").is_dir() else ()
    return sorted(file.name for file in found if file.suffix != ".lock")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint (``base``) and a cache in which its copy was made (``cache``)."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYDRAFT_CACHE", str(folder / "cache"))
        model = section(stored.plain(folder / "base"))
        assert native(model, verified=True) == (model, ""), "a rank does not make it"
        found, printed = native(model)
        assert is_copy(found) and "quantising it to" in printed
    return folder


def test_a_copy_is_used_and_made_again_if_it_is_damaged(made: Path, place: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "cache", place)
    model = section(made / "base")
    found, printed = native(model)
    assert is_copy(found) and printed == ""
    assert native(model, verified=True) == (found, "")
    assert prepare.native(model, 0) == model, "an export needs the unquantised weights"
    for other in ({"cache_quantised": False}, {"trust_remote_code": True}, {"dtype": Precision.fp32}):
        another = dataclasses.replace(model, **other)
        assert native(another, verified=True)[0] == another
    before = contents(Path(found.path))
    (weights,) = Path(found.path).glob("*.safetensors")
    os.truncate(weights, weights.stat().st_size // 2)
    again, printed = native(model)
    assert again == found and "it is made again" in printed
    assert contents(Path(found.path)) == before
    template = made / "base/chat_template.jinja"
    times = template.stat().st_mtime_ns
    os.utime(template, ns=(times, times + 1))
    assert native(model, verified=True)[0] == model, "the copy may have another template"
    os.utime(template, ns=(times, times))
    assert native(model, verified=True)[0] == found


def test_ranks_of_which_one_finds_no_copy_quantise_together(made: Path, tmp_path: Path) -> None:
    """While they load, the ranks of ZeRO-3 gather the scales of each weight: none may leave that out."""
    config = config_of("model=auto", f"model.path={made / 'base'}", "quant=nf4", "model.cache_quantised=true")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=Precision.bf16))
    config.model.dtype = Precision.auto

    def path(caches: list[Path], rank: int) -> str:
        os.environ["HYDRAFT_CACHE"] = str(caches[rank])
        with Screen(os.open(os.devnull, os.O_WRONLY), visible=False) as screen:
            return native_model.find(config, screen).path

    def paths(*caches: Path) -> list[str]:
        folder = tmp_path / caches[-1].name
        folder.mkdir()
        return run_forks(functools.partial(path, list(caches)), folder)

    assert paths(made / "cache", tmp_path / "none") == [str(made / "base")] * 2
    (first, second) = paths(made / "cache", made / "cache")
    assert first == second and is_copy(ModelConfig(name="copy", path=first))


def test_the_copy_of_a_hub_model_is_found_by_what_is_in_the_hubs_cache(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a request to the hub; the adapter's base is the name there."""
    repository, commit = tmp_path / "hub/models--owner--name", "0" * 40
    stored.plain(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    model = ModelConfig(name="mine", path="owner/name", revision="main", cache_quantised=True)
    console: Console = PlainConsole(quiet=True)
    source, kept = prepare._source(model, None, console, False), wanted(model)
    assert source is not None and kept is not None and native(model, verified=True)[0] == model
    copy = quantised_copy.entry(source, kept, console).folder
    copy.mkdir(parents=True)
    quantise.write(Job(str(source.folder), source.named, str(copy), True, "bf16"), lambda **event: None)
    found, printed = native(model)
    assert (found.path, found.revision, printed) == (str(copy), None, "")
    assert load_base(found, QuantConfig(QuantKind.nf4, True), Precision.bf16).name_or_path == "owner/name"


def test_a_small_model_is_not_copied_by_itself(tmp_path: Path) -> None:
    model = ModelConfig(name="mine", path=str(stored.plain(tmp_path / "base")))
    assert native(model) == (model, "")


def test_without_room_a_line_says_so(place: Path, tmp_path: Path) -> None:
    model = section(stored.plain(tmp_path / "base"))
    with small_disk.mounted(place, "256k"):
        found, printed = native(model)
        assert found == model
        assert "quantised at each start" in printed and "are free" in printed
        assert copies(place) == []


MAKING = """
from hydraft.config.model import ModelConfig
from hydraft.config.choices import Precision, QuantKind
from hydraft.config.schema import QuantConfig
from hydraft.models import prepare, quantised_copy
import sys
model = ModelConfig(name="mine", path=sys.argv[1], cache_quantised=True)
storage = quantised_copy.storage(model, QuantConfig(QuantKind.nf4, True), Precision.bf16)
print(prepare.native(model, 0, storage=storage).path)
"""


class Making:
    """A command that makes a copy."""

    def __init__(self, base: Path, streams: Path) -> None:
        streams.mkdir()
        program = streams / "making.py"
        program.write_text(MAKING)
        self.streams, self.process = streams, start_script(str(program), str(base), streams=streams)

    def ended(self) -> tuple[int | None, str, str]:
        """Wait for its exit code, its output and its errors."""
        done = completed(self.process, ["making.py"], self.streams, 120)
        return done.returncode, done.stdout.strip(), done.stderr

    def child(self) -> psutil.Process:
        """The process that quantises."""
        (child,) = awaited(lambda: psutil.Process(self.process.pid).children())
        return child


def awaited(what: Callable[[], Any]) -> Any:
    """What ``what`` returns, as soon as it is something."""
    end = time.monotonic() + SECONDS
    while not (found := what()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("seed", [1])
def test_kills_at_any_moment_leave_nothing_half(seed: int, place: Path, tmp_path: Path) -> None:
    random.seed(seed)
    base = stored.plain(tmp_path / "base", hidden_size=512, intermediate_size=2048, num_hidden_layers=6)
    # The process that makes it: the run goes on without a copy.
    making = Making(base, tmp_path / "first")
    child = making.child()
    time.sleep(random.uniform(0, 4))
    child.kill()
    code, out, err = making.ended()
    assert (code, out) == (0, str(base)), err
    assert "killed by SIGKILL" in err and copies(place) == []
    # The run: the other process ends with it, and what it left is removed when the copy is made.
    making = Making(base, tmp_path / "second")
    child = making.child()
    time.sleep(random.uniform(0, 4))
    making.process.kill()
    making.process.join()
    awaited(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert all(name.startswith(".") for name in copies(place))
    both = [Making(base, tmp_path / name) for name in ("third", "fourth")]
    (_, out, err), (_, other, waited) = (one.ended() for one in both)
    assert out == other and is_copy(ModelConfig(name="copy", path=out)), err + waited
    assert sorted("quantising it to" in text for text in (err, waited)) == [False, True], (
        "one made it, the other waited"
    )
    assert copies(place) == [Path(out).name]
    assert native(section(base)) == (dataclasses.replace(section(base), path=out), "")


def test_a_run_over_a_copy_equals_one_that_quantises(place: Path, records: Path, tmp_path: Path) -> None:
    """On two ranks, whose weights ZeRO-3 shards as they load; the adapter names the unquantised model as its base."""
    folders = {}
    for setting in ("true", "false"):
        folders[setting] = tmp_path / setting
        done = run_script(
            "train.py", "model=tiny", "quant=nf4", "zero=stage3", "cluster=1x2", "train.max_steps=2", "data.eval=null",
            f"data.train={records}", "train.micro_batch_size=2", f"model.cache_quantised={setting}", f"hydra.run.dir={folders[setting]}", HYDRAFT_CACHE=str(place),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert ("quantising it to" in done.stderr) == (setting == "true")
    ours, theirs = (small_disk.contents(folder / "adapter") for folder in folders.values())
    assert ours.keys() == theirs.keys()
    for name in ("adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "probe.json"):
        assert ours[name] == theirs[name], name
    bases = [json.loads(one["adapter_config.json"])["base_model_name_or_path"] for one in (ours, theirs)]
    assert bases[0] == bases[1] and "nf4" not in bases[0]
