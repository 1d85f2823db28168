"""A checkpoint is whole or is not taken for one: killed at every write, altered in every file, on a full disk."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_resume import cut, settings, train

from bench.equivalence import compose_run
from conftest import ROOT, run_script
from hydraft import manifest

# Runs of one rank in one process each, forked from this one, which has imported the stack. Python tells an audit hook of
# every file it is about to open, rename, make or remove; at the one whose number is given, the process is killed, as by the
# kernel or a power cut. Each argument is a run's folder, the number, and a file for the count.
KILLED = """
import json, os, signal, sys
os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
sys.path.insert(0, sys.argv[1])
import torch.distributed as dist
from pathlib import Path
from hydraft import keeper, worker
codes = []
for argument in sys.argv[2:]:
    folder, stop_at, count_file = json.loads(argument)
    child = os.fork()
    if child == 0:
        break
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
else:
    print(json.dumps(codes))
    sys.exit(0)
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
seen = [0]
armed = [False]
EVENTS = {"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "shutil.rmtree", "tempfile.mkdtemp", "tempfile.mkstemp"}

def hook(event, arguments):
    if not armed[0] or event not in EVENTS:
        return
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
        return
    if "checkpoints" not in " ".join(map(str, arguments)):
        return
    seen[0] += 1
    if seen[0] == stop_at:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
save = keeper.Keeper.save

def watched(self, trainer):
    armed[0] = trainer.state.global_step == 6
    save(self, trainer)
    armed[0] = False

keeper.Keeper.save = watched
worker.main(Path(folder), os.open(os.devnull, os.O_WRONLY))
Path(count_file).write_text(str(seen[0]))
os._exit(0)
"""


def killed_at(places: dict[int, Path], count: Path) -> list[int]:
    """Go on with each run, killed at the write of the checkpoint of step 6 whose number is its key; their exit codes."""
    runs = [json.dumps([str(folder), number, str(count)]) for number, folder in places.items()]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(ROOT / "src"), *runs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=500)
    codes: list[int] = json.loads(done.stdout.splitlines()[-1])
    return codes


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 9 steps, cut off after its checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("faults")
    records = folder / "records.json"
    records.write_text(json.dumps([{"instruction": f"{i}加一？", "output": f"{i + 1}"} for i in range(12)]))
    train(compose_run([*settings(records), "train.micro_batch_size=4"]), folder / "all")
    run = cut(folder / "all", folder / "cut")
    config = run / "config.yaml"
    config.write_text(
        config.read_text().replace("keep_last: 9", "keep_last: 2")
    )  # so that the oldest goes in the next save
    return run


@pytest.mark.slow
def test_a_kill_at_any_write_leaves_a_whole_checkpoint(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "probe")
    assert killed_at({0: tmp_path / "probe"}, tmp_path / "count") == [0]
    writes = int((tmp_path / "count").read_text())
    assert writes >= 10
    runs = {number: tmp_path / f"killed-{number}" for number in range(1, writes + 1)}
    for run in runs.values():
        shutil.copytree(begun, run)
    assert killed_at(runs, tmp_path / "none") == [-signal.SIGKILL] * writes
    found = set()
    for number, run in runs.items():
        newest, passed_over = manifest.newest(run)
        assert newest is not None and passed_over == [], number
        found.add(newest.name)
        assert manifest.fault(run / "checkpoints" / "step-000004") is None, number
    assert found == {"step-000004", "step-000006"}  # before the name is given, and after


@pytest.mark.slow
def test_an_altered_file_is_named_and_its_checkpoint_passed_over(begun: Path, tmp_path: Path) -> None:
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
            newest, passed_over = manifest.newest(run)
            assert newest is not None and newest.name == "step-000002"
            assert len(passed_over) == 1 and "step-000004 is passed over" in passed_over[0]
            assert file.name in passed_over[0] or file.name == manifest.NAME  # an altered list accuses another file


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_ends_the_run_and_keeps_what_is_there(begun: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(file.stat().st_size for file in begun.rglob("*") if file.is_file())
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size + 300_000}", "none", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        shutil.copytree(begun, disk / "run")
        done = run_script("train.py", f"resume={disk / 'run'}")
        assert done.returncode == 1
        assert "No space left on device" in done.stderr
        newest, _ = manifest.newest(disk / "run")
        assert newest is not None and newest.name == "step-000004"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
