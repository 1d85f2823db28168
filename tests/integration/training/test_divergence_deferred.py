"""Steps that are checked after the next one, as on a GPU: the same decisions, on all ranks, and no wait in between."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from test_divergence import SETTINGS, altered, result, write
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerControl, TrainerState

from bench.resume import metrics, weights
from conftest import RECORDS, ROOT, config_of, run_script
from hydraft.checkpoint import manifest
from hydraft.config.objective import ObjectiveConfig
from hydraft.data.batch import EpochOrder
from hydraft.errors import Diverged
from hydraft.launch.local import elastic
from hydraft.system import hardware
from hydraft.system.signals import SignalListener
from hydraft.training import reductions
from hydraft.training.callbacks import divergence as divergence_callback
from hydraft.training.callbacks.checkpoint import CheckpointCallback
from hydraft.training.callbacks.divergence import DivergenceCallback
from hydraft.training.callbacks.early_stop import EarlyStopCallback
from hydraft.training.objectives.registry import make_objective

STEPS = 30
NAN = math.nan


class Logging:
    """Collects the lines that are written."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self.screen = SimpleNamespace(say=lambda line: None)

    def write(self, step: int, values: dict[str, Any]) -> None:
        self.lines.append((step, values))


class Run:
    """Steps of a run without a model: their losses and gradient norms are given."""

    def __init__(self, folder: Path, deferred: bool, *overrides: str) -> None:
        self.config = config_of("train.log_every=10", "train.micro_batch_size=1", *overrides)
        self.norm: Any = 1.0
        self.logging: Any = Logging()
        engine = SimpleNamespace(get_global_grad_norm=lambda: self.norm, was_step_applied=lambda: True)
        world = dist.get_world_size()
        self.trainer: Any = SimpleNamespace(
            args=SimpleNamespace(device=torch.device("cpu")), start=None, losses=[], model_wrapped=engine,
            scale_at_floor=False, model=SimpleNamespace(config=SimpleNamespace(vocab_size=100)),
            objective=make_objective(ObjectiveConfig()),
            order=EpochOrder([1] * 100 * world, world, world, None, skipped=self.config.train.pass_over),
        )  # fmt: skip
        self.listener = SignalListener()
        self.early_stop = EarlyStopCallback(self.config.train.grace, torch.device("cpu"), self.listener)
        self.divergence = DivergenceCallback(self.config, folder, self.logging, self.trainer, self.early_stop)
        self.divergence.deferred = deferred
        self.divergence._origins = lambda items: {"file": items}  # type: ignore[method-assign]
        self.state, self.control = TrainerState(max_steps=STEPS), TrainerControl()

    def step(self, loss: float, norm: Any = 1.0) -> bool:
        """Make one, as the Trainer does; whether the run is to stop after it."""
        anything: Any = None
        if not self.trainer.order.skips(self.state.global_step + 1):
            self.trainer.losses.append(torch.tensor(loss))
        self.norm = norm
        self.divergence.on_optimizer_step(anything, self.state, self.control)
        self.state.global_step += 1
        self.early_stop.on_step_end(anything, self.state, self.control)
        return self.control.should_training_stop


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class NoWait(TorchDispatchMode):
    """Fails if a number of a tensor is read, which would wait for the device."""

    def __torch_dispatch__(self, function: Any, types: Any, inputs: Any = (), named: Any = None) -> Any:
        assert function is not torch.ops.aten._local_scalar_dense.default, "a step waits for the device"
        return function(*inputs, **(named or {}))


def test_no_step_waits_in_which_nothing_is_due(alone: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, True)
    now: list[int] = []
    read: dict[int, int] = {}  # step whose numbers were read: step in which that was

    class PendingNumbers(reductions.PendingNumbers):
        def __init__(self, values: torch.Tensor) -> None:
            super().__init__(values)
            self.step = now[-1]

        def read(self) -> list[float]:
            read[self.step] = now[-1]
            with monkeypatch.context() as allowed:
                allowed.setattr(torch.Tensor, "tolist", tolist)
                return super().read()

    tolist = torch.Tensor.tolist

    def refuse(self: torch.Tensor) -> Any:
        raise AssertionError("a step waits for the device")

    monkeypatch.setattr(reductions, "PendingNumbers", PendingNumbers)
    monkeypatch.setattr(torch.Tensor, "tolist", refuse)
    with NoWait():
        for step in range(1, STEPS + 1):
            now.append(step)
            run.step(1.0, torch.tensor(0.5) if step % 2 else 0.5)
    assert {step for step, seen in read.items() if seen == step} == {
        1,
        2,
        10,
        20,
        30,
    }  # 2: how long one takes was not known
    assert all(seen - step in (0, 1) for step, seen in read.items()) and len(read) == STEPS


HEALTHY = [4.0 - 0.01 * step for step in range(STEPS)]
CASES: dict[str, list[tuple[float, Any]]] = {
    "healthy": [(loss, 1.0) for loss in HEALTHY],
    "losses": [(NAN if step in (4, 9, 17) else loss, 1.0) for step, loss in enumerate(HEALTHY)],
    "norms": [(loss, (-1.0, math.inf, NAN, 1.0)[step % 4]) for step, loss in enumerate(HEALTHY)],
    "norms on the device": [(loss, torch.tensor((-1.0, math.inf, 1.0)[step % 3])) for step, loss in enumerate(HEALTHY)],
    "spikes": [(50.0 if step in (5, 20) else loss, None) for step, loss in enumerate(HEALTHY)],
    "zeros": [(loss, 0.0 if 6 <= step < 12 else torch.tensor(0.0) if step > 20 else 1.0) for step, loss in enumerate(HEALTHY)],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_deferred_checks_decide_as_immediate_ones(case: str, alone: None, tmp_path: Path) -> None:
    runs = [Run(tmp_path, deferred, "train.on_divergence=ignore") for deferred in (False, True)]
    for run in runs:
        for loss, norm in CASES[case]:
            run.step(loss, norm)
    at_once, later = runs
    assert [json.dumps(line) for line in later.logging.lines] == [json.dumps(line) for line in at_once.logging.lines]
    assert bool(later.logging.lines) == (case != "healthy")
    assert later.divergence.state() == at_once.divergence.state()


@pytest.mark.parametrize(("diverged", "detected"), [(1, 1), (2, 2), (5, 6), (9, 10), (10, 10), (30, 30)])
def test_the_diverged_step_is_reported_and_not_the_next_one(
    alone: None, tmp_path: Path, diverged: int, detected: int
) -> None:
    run = Run(tmp_path, True, "train.on_divergence=rewind")
    for step in range(1, detected):
        run.step(NAN if step == diverged else 1.0)
    with pytest.raises(Diverged, match=f"^step {diverged}: the loss is nan, on record"):
        run.step(NAN)  # what comes after it is diverged too
    found = json.loads((tmp_path / "result.json").read_text())["divergence"]
    assert (found["step"], found["pass_over"], found["samples"]) == (diverged, [diverged], {"file": [diverged - 1]})
    assert run.state.global_step == detected - 1


def test_skipped_steps_in_between(alone: None, tmp_path: Path) -> None:
    run = Run(tmp_path, True, "train.pass_over=[5,6]")
    for _ in range(3):
        run.step(1.0)
    run.step(NAN)
    with pytest.raises(Diverged, match=r"^step 4: "):
        run.step(0.0)
    assert run.divergence.waiting is None


def test_a_diverged_step_is_not_saved(alone: None, tmp_path: Path) -> None:
    run = Run(tmp_path, True)
    for _ in range(4):
        run.step(1.0)
    run.step(NAN)
    callback: Any = object.__new__(CheckpointCallback)
    callback.divergence, callback.folder = run.divergence, tmp_path
    with pytest.raises(Diverged, match=r"^step 5: "):
        callback.save(SimpleNamespace(state=run.state))
    assert not (tmp_path / "checkpoints").exists()
    run.divergence.on_train_end(None, run.state, run.control)  # type: ignore[arg-type]  # it is looked at once


def of_two(rank: int, folder: Path) -> None:
    """One of two ranks: its decisions on a loss that only rank 1 has, and on signals that only one rank receives."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    seen: dict[str, Any] = {}
    run = Run(folder, True)
    try:
        for step in range(1, 8):
            run.step(NAN if rank == 1 and step == 5 else 1.0)
    except Diverged as error:
        seen["diverged"] = [str(error), run.state.global_step]
    for case, long, asked, at in (("quick", 0.5, 15, 5), ("long", 0.0, 10, 5), ("last", 0.5, 15, STEPS)):
        divergence_callback.LONG = long
        run = Run(folder, True)
        for step in range(1, STEPS + 1):
            if rank == 1 and step == at:
                run.listener.received = asked
            if run.step(1.0):
                seen[case] = [run.early_stop.number, run.state.global_step, run.control.should_save]
                break
    (folder / f"{rank}.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


def test_two_ranks_decide_the_same_at_the_same_step(tmp_path: Path) -> None:
    elastic.start_fork_server(hardware.detect())
    mp.start_processes(of_two, (tmp_path,), nprocs=2, start_method="forkserver")
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["diverged"][0].startswith("step 5: the loss is nan") and first["diverged"][1] == 5
    assert "rank 1, micro-batch 0" in first["diverged"][0]
    assert first["quick"] == [15, 6, True]  # a step after the one that it came in
    assert first["long"] == [10, 5, True]
    assert first["last"] == [15, STEPS, True]


def test_a_run_with_deferred_checks_rewinds_to_the_same_weights(tmp_path: Path) -> None:
    """Step 4 diverges, which is detected after step 5, and is skipped: bit-equal to a run with immediate checks."""
    poisoned = altered(tmp_path / "model", "embedding", "%", float("inf"))
    records = [record | {"input": "%" if number == 14 else ""} for number, record in enumerate(RECORDS, 1)]
    command = [
        *SETTINGS, *poisoned, write(tmp_path / "records.json", records), "train.micro_batch_size=2", "cluster=1x2",
        "train.on_divergence=rewind", "train.save_every=3", "train.save_minutes=null", "train.log_every=50", "train.epochs=1",
    ]  # fmt: skip
    paths = os.pathsep.join([str(ROOT / "tests/support/deferred"), str(ROOT / "src")])
    for name, environment in (("at once", {}), ("later", {"PYTHONPATH": paths})):
        done = run_script("train.py", *command, f"hydra.run.dir={tmp_path / name}", **environment)
        assert done.returncode == 0, done.stderr
        assert "changed: train.pass_over=[4] (was [])\nresuming from step-000003" in done.stderr
        assert "step 4: the loss is nan, on records 13, 14, 15, 16 of" in done.stderr
        assert result(tmp_path / name)["status"] == "completed"
    expected = weights(tmp_path / "at once")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "later").items())
    assert [line["step"] for line in metrics(tmp_path / "later")] == [
        line["step"] for line in metrics(tmp_path / "at once")
    ]
    newest, _ = manifest.newest(tmp_path / "later")
    assert newest is not None


@pytest.mark.gpu
def test_numbers_are_copied_from_a_gpu_without_a_wait() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        losses = torch.tensor([1.0, 2.0], device="cuda")
        norm = torch.tensor(math.inf, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            reading = reductions.reduce_later(reductions.StepResult(1, losses, norm, False, False), [0.0, 7.0])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert reading.read() == [3.0, 1.0, 0.0, 0.0, 7.0]
    finally:
        dist.destroy_process_group()
