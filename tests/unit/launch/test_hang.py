"""The rank that hangs is determined from stacks in faulthandler's format."""

from pathlib import Path

import accelerate
import deepspeed
import pytest
import torch
import transformers

from hydraft.errors import FailureReason
from hydraft.launch.local import hang
from hydraft.system.source_tree import PACKAGE

PACKAGES = {package.__name__: Path(package.__file__).parent for package in (accelerate, deepspeed, torch, transformers)}  # fmt: skip
PACKAGES["hydraft"] = PACKAGE


def at(place: str, code: str = "") -> str:
    """A line in faulthandler's format: the first line with ``code`` in a file, which may belong to a package."""
    package, _, rest = place.partition("/")
    file = PACKAGES[package] / rest if package in PACKAGES else Path(place)
    lines = file.read_text().splitlines() if code else []
    number = next((number for number, line in enumerate(lines, 1) if code in line), 1)
    assert not code or code in lines[number - 1], f"{file} has no {code}"
    return f'  File "{file}", line {number} in {file.stem}'


def dump(*frames: str) -> list[str]:
    """The frames that are read from the dump of a rank with these innermost frames."""
    below = [at("transformers/trainer.py"), at("hydraft/training/worker.py"), at("hydraft/launch/local/rank.py").replace(" in rank", " in enter")]  # fmt: skip
    waiting = 'Thread 0x1 (most recent call first):\n  File "/usr/lib/python3.11/threading.py", line 320 in wait\n'
    return hang.main_stack("\n".join([waiting, "Current thread 0x2 (most recent call first):", *frames, *below]))


WAITING_FOR_GPU = {
    "int(tensor), after a step": [at("hydraft/training/callbacks/early_stop.py", "int(number)")],
    "tolist, after a step": [at("hydraft/training/reductions.py", "shared.tolist()")],
    "an event, a step later": [
        at("hydraft/training/reductions.py", "self.event.synchronize()"),
        at("hydraft/training/callbacks/divergence.py"),
    ],
    "tolist, while logging": [at("hydraft/training/trainer.py", "mine.tolist()")],
    "the norm's item": [at("deepspeed/runtime/utils.py", ".item()")],
    "overflow": [at("deepspeed/runtime/zero/stage_1_and_2.py", "def has_overflow"), at("deepspeed/runtime/engine.py")],
    "a full queue": [at("torch/nn/modules/linear.py", "F.linear"), at("torch/nn/modules/module.py")],
    "synchronize": [at("torch/cuda/__init__.py", "_cuda_synchronize"), at("deepspeed/runtime/engine.py")],
    "a batch to the GPU": [at("accelerate/utils/operations.py", ".to("), at("accelerate/data_loader.py")],
    "the Trainer's item": [at("transformers/trainer.py", ".item()")],
}
BUSY = {
    "the loader": [at("hydraft/data/batch.py"), at("torch/utils/data/_utils/fetch.py")],
    "a tensor of the loader": [at("torch/functional.py"), at("torch/utils/data/_utils/collate.py")],
    "a file": [at("/usr/lib/python3.11/pathlib.py"), at("hydraft/runs/run_folder.py")],
    "a dashboard": [at("/usr/lib/python3.11/ssl.py"), at("hydraft/training/callbacks/logging.py")],
    "a user's callback": [at("/home/me/callbacks.py"), at("transformers/trainer_callback.py")],
    "a compiler": [at("torch/_inductor/codecache.py"), at("torch/_dynamo/eval_frame.py")],
}


def observed(frames: list[str], on_gpu: bool = True, age: float = 60.0) -> dict[str, object]:
    return {"state": "S", "age": age, "frames": frames, "waits": hang.is_waiting(frames, on_gpu)}


@pytest.mark.parametrize("busy_in", BUSY)
@pytest.mark.parametrize("place", WAITING_FOR_GPU)
def test_with_gpus_a_rank_that_waits_for_its_gpu_is_not_reported(place: str, busy_in: str) -> None:
    waiting, busy = dump(*WAITING_FOR_GPU[place]), dump(*BUSY[busy_in])
    failure = hang.diagnose({0: observed(waiting, age=61.0), 1: observed(busy), 2: observed(waiting, age=61.0)})
    assert (failure.rank, failure.reason) == (1, FailureReason.hung), failure
    assert "2 other rank(s) waited in" in failure.message


def test_without_gpus_a_rank_in_such_a_call_is_busy() -> None:
    collective = dump(at("torch/distributed/distributed_c10d.py"), at("hydraft/training/callbacks/divergence.py"))
    ranks = {0: observed(collective, False, 61.0), 1: observed(dump(*WAITING_FOR_GPU["tolist, after a step"]), False)}
    assert hang.diagnose(ranks).rank == 1


def test_no_rank_is_reported_if_all_wait() -> None:
    ranks = {
        0: observed(dump(*WAITING_FOR_GPU["synchronize"])),
        1: observed(dump(*WAITING_FOR_GPU["overflow"]), age=62.0),
    }
    failure = hang.diagnose(ranks)
    assert failure.rank is None
    expected = "all 2 ranks made no progress for 62 s, and each was waiting for another rank or for its GPU, in "
    assert failure.message.startswith(expected)
    assert "runtime/engine.py" in failure.message or "zero/stage_1_and_2.py" in failure.message
    assert hang.diagnose({0: ranks[0]}).rank == 0, "a single rank does not wait for another"
    assert hang.diagnose({**ranks, 2: {"state": "T", "age": 60.0, "frames": [], "waits": False}}).rank == 2


def test_a_missing_source_file_is_not_an_error() -> None:
    assert hang.is_waiting(["f (/nowhere/at/all.py:3)"], on_gpu=True) is False
    assert hang.is_waiting([], on_gpu=True) is False
