"""Files of a run are written atomically, and a full disk leaves the last complete state."""

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conftest import config_of, run_script
from hydraft.config.schema import load_config
from hydraft.errors import ConfigError
from hydraft.plan.plan import make_plan
from hydraft.runs import run_folder
from hydraft.system import files
from hydraft.system.hardware import Hardware


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    yield from mount(tmp_path / "disk", "1m")


@pytest.fixture
def disk_for_a_run(tmp_path: Path) -> Iterator[Path]:
    """A file system that is filled by a few checkpoints of the embedded model."""
    yield from mount(tmp_path / "disk", "3m")


def mount(folder: Path, size: str) -> Iterator[Path]:
    """Mount a small file system in main memory, and unmount it afterwards."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_the_last_complete_folder(small_disk: Path) -> None:
    with files.staged_folder(small_disk / "adapter") as staging:
        (staging / "weights").write_bytes(b"good" * 1000)
    with pytest.raises(OSError, match="No space left"), files.staged_folder(small_disk / "adapter") as staging:
        (staging / "weights").write_bytes(b"more" * 500_000)
    assert (small_disk / "adapter" / "weights").read_bytes() == b"good" * 1000
    assert [entry.name for entry in small_disk.iterdir()] == ["adapter"]


def test_a_full_disk_leaves_the_last_complete_file(small_disk: Path) -> None:
    file = small_disk / "result.json"
    files.write_json(file, {"status": "completed"})
    with pytest.raises(OSError, match="No space left"):
        files.write_text(file, "x" * 2_000_000)
    assert json.loads(file.read_text()) == {"status": "completed"}
    assert [entry.name for entry in small_disk.iterdir()] == ["result.json"]


def test_a_folder_replaces_the_one_before(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with files.staged_folder(tmp_path / "adapter") as staging:
            (staging / content).write_text(content)
    assert [entry.name for entry in (tmp_path / "adapter").iterdir()] == ["two"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def test_a_second_run_cannot_use_the_same_folder(tmp_path: Path) -> None:
    config = config_of()
    run_folder.create(tmp_path / "run", config, make_plan(config, 8), Hardware())
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir=.*a run is in it already"):
        run_folder.create(tmp_path / "run", config_of("lora.r=4"), make_plan(config, 8), Hardware())
    assert (tmp_path / "run" / "config.yaml").read_text() == before


def test_a_running_run_is_locked_until_its_process_ends(tmp_path: Path) -> None:
    """Also if it is killed: the kernel releases the lock."""
    code = (
        "import sys, time; from pathlib import Path; from hydraft.runs import run_folder\n"
        "with run_folder.held(Path(sys.argv[1])): print(flush=True); time.sleep(99)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        who = f"{tmp_path}: process {holder.pid} on {socket.gethostname()} is running it"
        with pytest.raises(ConfigError, match=re.escape(who)), run_folder.held(tmp_path):
            pass
    finally:
        holder.kill()
        holder.wait(10)
    with run_folder.held(tmp_path):
        pass


def test_a_run_is_found_by_its_folder_and_by_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="run=last: no run"):
        run_folder.find("last")
    for name in ("one", "two"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / "config.yaml").touch()
    assert run_folder.find("last") == Path("outputs/two")
    assert run_folder.find("outputs/one") == Path("outputs/one")


def test_a_disk_that_fills_during_a_run_leaves_each_saved_checkpoint_readable(
    disk_for_a_run: Path, tmp_path: Path, records: Path
) -> None:
    folder = disk_for_a_run / "run"
    done = run_script(
        "train.py", f"data.train={records}", "data.eval=null", "train.epochs=30", "train.micro_batch_size=24",
        "train.save=epoch", "train.warmup_ratio=0", f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("rank 0 failed: ") == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    saved = sorted((folder / "checkpoints").glob("step-*"))
    assert len(saved) >= 1
    for checkpoint in saved:
        tensors = load_file(checkpoint / "adapter_model.safetensors")
        assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)
        assert (checkpoint / "tokenizer.json").is_file()
    assert load_config(folder / "config.yaml")
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
