"""A checkpoint is whole or is not taken for one: killed at every write, altered in every file, on a full disk."""

import dataclasses
import json
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from small_disk import make_room, mounted
from test_resume import CUT, settings

from bench.equivalence import compose_run
from bench.resume import cut, differs, train
from conftest import run_code, run_script
from hydraft.checkpoint import manifest
from hydraft.config.choices import Precision
from hydraft.plan import plan
from hydraft.runs import run_folder
from hydraft.system import hardware

# A run of one rank. Python tells an audit hook of every file it is about to open, rename, make or remove. At each of them the run's
# folder is copied: what a process that is killed there leaves, without the copy's own buffers. At the one whose number is given, the
# process is killed. `fp16`: DeepSpeed has it on a CPU too, once it is told so; its loss scale begins too high and grows every other
# step, so some steps overflow. `full_at`: the disk is filled as the first file of that name is about to be written.
RANK = """
import json, os, shutil, signal, sys
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
import torch.distributed as dist
from pathlib import Path
from deepspeed.accelerator import get_accelerator
from hydraft.training import arguments, worker
from hydraft.training.callbacks import checkpoint
from small_disk import fill
asked = json.loads(sys.argv[1])
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
seen, filled = [0], []
armed = [False]
EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "shutil.rmtree", "tempfile.mkdtemp", "tempfile.mkstemp"}

def hook(event, arguments):
    name = asked["full_at"]
    if name and not filled and event == "open" and name in str(arguments[0]) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        filled.append(name)
        fill(Path(asked["folder"]).parent)
    if not armed[0] or event not in EVENTS:
        return
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
        return
    if "checkpoints" not in " ".join(map(str, arguments)):
        return
    seen[0] += 1
    if seen[0] == asked["stop_at"]:
        os.kill(os.getpid(), signal.SIGKILL)
    if asked["copies"]:
        armed[0] = False
        shutil.copytree(asked["folder"], Path(asked["copies"], str(seen[0])))
        armed[0] = True

sys.addaudithook(hook)
save = checkpoint.CheckpointCallback.save

def watched(self, trainer):
    armed[0] = trainer.state.global_step == 6
    save(self, trainer)
    armed[0] = False

checkpoint.CheckpointCallback.save = watched
if asked["fp16"]:
    get_accelerator().__class__.is_fp16_supported = lambda self: True
    made = arguments.deepspeed_config
    scale = {"enabled": True, "initial_scale_power": 24, "loss_scale_window": 2}
    arguments.deepspeed_config = lambda *given: {**made(*given), "fp16": scale}
worker.main(Path(asked["folder"]), os.open(os.devnull, os.O_WRONLY))
os._exit(0)
"""


def run_rank(folder: Path, stop_at: int = 0, copies: Path | None = None, fp16: bool = False, full_at: str = "") -> int:
    """Run a run's one rank; its exit code.

    Args:
        folder: of the run.
        stop_at: number of the write of the checkpoint of step 6 at which it is killed; 0 for none.
        copies: where the folder is copied to at each of these writes, under the write's number.
        fp16: train in fp16.
        full_at: a file; as it is about to be written, the disk is filled.
    """
    kept = None if copies is None else str(copies)
    asked = {"folder": str(folder), "stop_at": stop_at, "copies": kept, "fp16": fp16, "full_at": full_at}
    with tempfile.TemporaryDirectory() as scratch:
        return run_code(RANK, Path(scratch), json.dumps(asked)).returncode


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 9 steps, cut off after its checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("faults")
    records = folder / "records.json"
    records.write_text(json.dumps([{"instruction": f"{i}加一？", "output": f"{i + 1}"} for i in range(12)]))
    train(compose_run([*settings(records), "train.micro_batch_size=4"]), folder / "all")
    run = cut(folder / "all", folder / "cut", CUT)
    config = run / "config.yaml"
    config.write_text(
        config.read_text().replace("keep_last: 9", "keep_last: 2")
    )  # so that the oldest goes in the next save
    return run


def names(run: Path) -> list[str]:
    """The files of a run; the names of temporary ones have a random part."""
    return sorted(re.sub(r"[0-9a-f]{8}(?=/|$|\.old)", "*", str(file.relative_to(run))) for file in run.rglob("*"))


def test_a_kill_at_any_write_leaves_a_whole_checkpoint(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "run")
    assert run_rank(tmp_path / "run", copies=tmp_path / "copies") == 0
    copies = sorted((tmp_path / "copies").iterdir(), key=lambda copy: int(copy.name))
    assert len(copies) >= 10
    found = []
    for run in copies:
        newest, skipped = manifest.newest(run)
        assert newest is not None and skipped == [], run.name
        found.append(newest.name)
        assert manifest.fault(run / "checkpoints" / "step-000004") is None, run.name
    last = found.index("step-000006")  # the write that gives it its name
    for number in (last // 2, last):
        killed = tmp_path / f"killed-{number}"
        shutil.copytree(begun, killed)
        assert run_rank(killed, stop_at=number) == -signal.SIGKILL
        assert names(killed) == names(tmp_path / "copies" / str(number)), "a copy is what a kill leaves"
    assert set(found) == {"step-000004", "step-000006"}  # before the name is given, and after


@pytest.mark.parametrize("zero", ["stage1", "stage3"])
def test_fp16_goes_on_with_its_loss_scale(zero: str, records: Path, tmp_path: Path) -> None:
    """Steps that overflowed are no steps of Adam's nor of the schedule's."""
    config = compose_run(
        [*settings(records, "train.max_steps=9"), f"zero={zero}", "quant=none", "train.micro_batch_size=4"]
    )
    fp16 = dataclasses.replace(config.train, precision=Precision.fp16)  # refused without a GPU: it would be slow
    config = dataclasses.replace(config, train=fp16, model=dataclasses.replace(config.model, dtype=Precision.fp16))
    run_folder.create(tmp_path / "whole", config, plan.make_plan(config, 24), hardware.detect())
    assert run_rank(tmp_path / "whole", fp16=True) == 0
    numbers = json.loads((tmp_path / "whole/checkpoints/step-000009/state.json").read_text())
    assert 0 < numbers["schedule_step"] == numbers["adam_step"] < 9
    resumed = cut(tmp_path / "whole", tmp_path / "cut", CUT)
    assert run_rank(resumed, fp16=True) == 0
    assert differs(resumed, tmp_path / "whole") is None


def test_an_altered_file_is_named_and_its_checkpoint_skipped(begun: Path, tmp_path: Path) -> None:
    latest = begun / "checkpoints/step-000004"
    files = [file for file in latest.rglob("*") if file.is_file()]
    assert {"optimizer.safetensors", "random.safetensors", "state.json", "manifest.json"} <= {
        file.name for file in files
    }
    for number, original in enumerate(files):
        for change in ("flip", "truncate", "remove"):
            run = tmp_path / f"{number}-{change}"
            shutil.copytree(begun / "checkpoints", run / "checkpoints")
            file = run / "checkpoints/step-000004" / original.relative_to(latest)
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            if change == "remove":
                file.unlink()
            else:
                file.write_bytes(content if change == "flip" else content[:-1])
            newest, skipped = manifest.newest(run)
            assert newest is not None and newest.name == "step-000002"
            assert len(skipped) == 1 and "step-000004 is skipped" in skipped[0]
            assert file.name in skipped[0] or file.name == manifest.NAME  # an altered list accuses another file


def test_a_full_disk_ends_the_run_and_with_room_it_ends_as_it_would_have(begun: Path, tmp_path: Path) -> None:
    size = sum(file.stat().st_size for file in begun.rglob("*") if file.is_file())
    with mounted(tmp_path / "disk", f"{size + 300_000}") as disk:
        shutil.copytree(begun, disk / "run")
        command = ["train.py", f"resume={disk / 'run'}"]
        done = run_script(*command)
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        assert f"free space there, then: python train.py resume={disk / 'run'}" in done.stderr
        assert "Traceback" not in done.stderr
        newest, _ = manifest.newest(disk / "run")
        assert newest is not None and newest.name == "step-000004"
        subprocess.run(["mount", "-o", "remount,size=32m", str(disk)], check=True)
        assert run_script(*command).returncode == 0
        assert differs(disk / "run", begun.parent / "all") is None


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json"])
def test_a_disk_that_is_full_at_any_file_costs_only_what_came_after_the_checkpoint(
    name: str, begun: Path, tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk", "32m") as disk:
        run = disk / "run"
        shutil.copytree(begun, run)
        with (run / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": 5, "los')  # as an earlier version left it
        assert run_rank(run, full_at=name) == 1
        newest, skipped = manifest.newest(run)
        assert newest is not None and skipped == []
        lines = (run / "metrics.jsonl").read_bytes().splitlines()
        assert all(json.loads(line) for line in lines[:-1])  # the last one was cut off before, if it was not reached
        make_room(disk)
        assert run_rank(run) == 0
        assert differs(run, begun.parent / "all") is None
