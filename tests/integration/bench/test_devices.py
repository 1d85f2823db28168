"""A bench measures the GPU if there is one, and names its result file after the measured device."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import kernels, results, serve, throughput
from bench.equivalence import compose_run
from hydraft.config import rules
from hydraft.system import hardware
from hydraft.system.hardware import Gpu, Hardware
from hydraft.system.source_tree import ROOT

H100 = Hardware((Gpu("NVIDIA H100 80GB HBM3", 81559 << 20, 9.0),), cpus=16, memory=128 << 30)
SMI = f"""#!{sys.executable}
import sys
CARDS = [
    {{"name": "NVIDIA A100-SXM4-80GB", "memory.total": "81920", "compute_cap": "8.0", "index": "0"}},
    {{"name": "NVIDIA GeForce RTX 4090", "memory.total": "24564", "compute_cap": "8.9", "index": "1"}},
]
query = next(word for word in sys.argv if word.startswith("--query-gpu=")).partition("=")[2]
for card in CARDS:
    print(", ".join(card.get(name, "[N/A]") for name in query.split(",")))
"""
"""Simulates an nvidia-smi with two GPUs."""


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with an H100, and the folder of the result files."""
    monkeypatch.setattr(hardware, "detect", lambda: H100)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    return tmp_path / "results"


def test_result_files_name_their_device(card: Path) -> None:
    there = results.write("x", {"a": 1})
    assert there.name == "x-nvidia-h100-80gb-hbm3.json"
    found = json.loads(there.read_text())
    assert (found["device"], found["card"], found["figures"]) == ("cuda", "NVIDIA H100 80GB HBM3", {"a": 1})
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])


def test_cpu_results_on_a_machine_with_a_gpu_are_saved_as_cpu_results(card: Path) -> None:
    there = results.write("x", {"a": 1}, "cpu")
    assert there.name == "x-cpu.json"
    found = json.loads(there.read_text())
    assert (found["device"], found["card"], found["driver"]) == ("cpu", "cpu", None)


@pytest.mark.parametrize(
    ("visible", "name"), [(None, "NVIDIA A100-SXM4-80GB"), ("1", "NVIDIA GeForce RTX 4090"), ("", "cpu")]
)
def test_the_gpu_is_the_first_visible_one(visible: str | None, name: str, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(SMI)
    tool.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    code = "from bench.results import card, device; print(device(), card())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == f"{'cpu' if name == 'cpu' else 'cuda'} {name}"


@pytest.mark.parametrize(("flags", "device"), [([], "cuda"), (["--device", "cpu"], "cpu")])
def test_throughput_measures_the_gpu(
    flags: list[str], device: str, card: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands, built = [], []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        measured = {"samples": 2.0, "losses": [1.0], "memory": 1 << 30, "tokens": 100, "parameters": 1000}
        return subprocess.CompletedProcess(command, 0, json.dumps(measured))

    monkeypatch.setattr(throughput, "build", lambda *arguments: built.append(arguments))
    monkeypatch.setattr(throughput, "matmul_rate", lambda where: {"cuda": 9e14, "cpu": 1e11}[where])
    monkeypatch.setattr(throughput.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["throughput.py", "--rounds", "1", *flags])
    throughput.main()
    commands = [command for command in commands if command[0] == sys.executable]
    assert len(commands) == len(throughput.VARIANTS)
    assert all(command[command.index("--device") + 1] == device for command in commands)
    assert built[0][2] is (throughput.LARGE if device == "cuda" else throughput.SMALL)
    name = "throughput-nvidia-h100-80gb-hbm3.json" if device == "cuda" else "throughput-cpu.json"
    assert json.loads((card / name).read_text())["device"] == device
    assert ("NVIDIA H100" if device == "cuda" else "on cpu") in capsys.readouterr().out


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_both_servers_run_on_the_same_device(device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(serve, "Server", lambda name, command, *_: commands.append(command))
    serve.servers("model", tmp_path, device)
    ours, theirs = commands
    assert f"device={device}" in ours
    assert theirs[theirs.index("--device") + 1] == device
    assert ("dtype=bf16" in ours) == ("bfloat16" in theirs) == (device == "cuda")


def test_kernels_are_compared_on_long_records(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from hydraft.data.load import load
    from hydraft.data.tokenize import encode
    from hydraft.models.prepare import tokenizer

    monkeypatch.setattr(rules, "find_spec", lambda name: object())
    shared = kernels.common(tmp_path, gpu=True)
    for variant in kernels.VARIANTS.values():
        config = compose_run([*shared, "data.eval=null", "train.micro_batch_size=2", *variant.split()], H100)
    encoded, _ = encode(load(config.data.train, "records"), tokenizer(config.model), config.data)
    lengths = [len(example["input_ids"]) for example in encoded]
    assert min(lengths) == config.data.max_length == 2048
    assert len(lengths) >= config.global_batch_size * 20
