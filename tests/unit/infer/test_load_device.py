"""Which GPU a process uses: the configured one, set before any other is touched. The GPUs are simulated."""

import queue
from pathlib import Path
from typing import Any

import pytest
import torch

from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError
from hydraft.infer import load, processes
from hydraft.infer.batch import workers
from hydraft.infer.resolve import find
from using import adapter


class Reached(Exception):
    """Raised when the model would be loaded."""


@pytest.fixture
def cuda_calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Simulate two GPUs, record the calls to them, and stop before the model is loaded."""
    calls: list[object] = []

    def load_base(*_: Any) -> None:
        calls.append("load_base")
        raise Reached

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(str(device)))
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: calls.append("touched"))
    monkeypatch.setattr(load, "load_base", load_base)
    return calls


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter(tmp_path_factory.mktemp("run") / "mine", "quant=none")


@pytest.mark.parametrize(
    ("device", "card"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", None)]
)
def test_the_configured_gpu_is_the_current_one(
    device: str, card: str | None, run: Path, cuda_calls: list[object]
) -> None:
    options = InferConfig(run=str(run), device=device)
    with pytest.raises(Reached):
        load.load(find(options), options)
    assert cuda_calls == [*([card] if card else []), "load_base"]


@pytest.mark.parametrize("rank", [0, 1])
def test_each_process_of_batch_mode_has_its_gpu(
    rank: int, run: Path, cuda_calls: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "die_with_parent", lambda: None)
    monkeypatch.setattr(processes.signal, "signal", lambda *_: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    options = InferConfig(run=str(run))
    done: queue.Queue[object] = queue.Queue()
    workers._process(rank, 2, find(options)[0], options, queue.Queue(), done)
    assert "Reached" in str(done.get_nowait())
    assert cuda_calls == [f"cuda:{rank}", "load_base"]


def test_a_missing_gpu_is_refused(run: Path, cuda_calls: list[object]) -> None:
    options = InferConfig(run=str(run), device="cuda:2")
    with pytest.raises(ConfigError, match="device=cuda:2: 2 CUDA devices"):
        load.load(find(options), options)
    assert cuda_calls == []
