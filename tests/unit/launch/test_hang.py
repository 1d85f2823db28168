"""Which rank stood still, told by stacks as faulthandler writes them."""

from pathlib import Path

import accelerate
import deepspeed
import pytest
import torch
import transformers

from hydraft.launch.local import hang
from hydraft.system.source_tree import PACKAGE

PACKAGES = {package.__name__: Path(package.__file__).parent for package in (accelerate, deepspeed, torch, transformers)}  # fmt: skip
PACKAGES["hydraft"] = PACKAGE


def at(place: str, code: str = "") -> str:
    """A line of faulthandler's: a file of a package, or any other, where the first line that has ``code`` is run."""
    package, _, rest = place.partition("/")
    file = PACKAGES[package] / rest if package in PACKAGES else Path(place)
    lines = file.read_text().splitlines() if code else []
    number = next((number for number, line in enumerate(lines, 1) if code in line), 1)
    assert not code or code in lines[number - 1], f"{file} has no {code}"
    return f'  File "{file}", line {number} in {file.stem}'


def dump(*frames: str) -> list[str]:
    """The frames that are found in a dump of a rank whose innermost frames these are."""
    below = [at("transformers/trainer.py"), at("hydraft/training/worker.py"), at("hydraft/launch/local/rank.py").replace(" in rank", " in enter")]  # fmt: skip
    waiting = 'Thread 0x1 (most recent call first):\n  File "/usr/lib/python3.11/threading.py", line 320 in wait\n'
    return hang.main_stack("\n".join([waiting, "Current thread 0x2 (most recent call first):", *frames, *below]))


AT_THE_CARD = {
    "int(tensor), after a step": [at("hydraft/training/callbacks/early_stop.py", "int(number)")],
    "tolist, after a step": [at("hydraft/training/reductions.py", "shared.tolist()")],
    "an event, a step later": [
        at("hydraft/training/reductions.py", "self.event.synchronize()"),
        at("hydraft/training/callbacks/divergence.py"),
    ],
    "tolist, as it logs": [at("hydraft/training/trainer.py", "mine.tolist()")],
    "the norm's item": [at("deepspeed/runtime/utils.py", ".item()")],
    "overflow": [at("deepspeed/runtime/zero/stage_1_and_2.py", "def has_overflow"), at("deepspeed/runtime/engine.py")],
    "a queue that is full": [at("torch/nn/modules/linear.py", "F.linear"), at("torch/nn/modules/module.py")],
    "synchronize": [at("torch/cuda/__init__.py", "_cuda_synchronize"), at("deepspeed/runtime/engine.py")],
    "a batch to the card": [at("accelerate/utils/operations.py", ".to("), at("accelerate/data_loader.py")],
    "the Trainer's item": [at("transformers/trainer.py", ".item()")],
}
AWAKE = {
    "the loader": [at("hydraft/data/batch.py"), at("torch/utils/data/_utils/fetch.py")],
    "a tensor of the loader": [at("torch/functional.py"), at("torch/utils/data/_utils/collate.py")],
    "a file": [at("/usr/lib/python3.11/pathlib.py"), at("hydraft/runs/run_folder.py")],
    "a dashboard": [at("/usr/lib/python3.11/ssl.py"), at("hydraft/training/callbacks/logging.py")],
    "a person's callback": [at("/home/me/callbacks.py"), at("transformers/trainer_callback.py")],
    "a compiler": [at("torch/_inductor/codecache.py"), at("torch/_dynamo/eval_frame.py")],
}


def known(frames: list[str], on_gpu: bool = True, age: float = 60.0) -> dict[str, object]:
    return {"state": "S", "age": age, "frames": frames, "waits": hang.is_waiting(frames, on_gpu)}


@pytest.mark.parametrize("still", AWAKE)
@pytest.mark.parametrize("place", AT_THE_CARD)
def test_with_gpus_a_rank_that_waits_for_its_card_is_not_named(place: str, still: str) -> None:
    waiting, awake = dump(*AT_THE_CARD[place]), dump(*AWAKE[still])
    rank, cause = hang.diagnose({0: known(waiting, age=61.0), 1: known(awake), 2: known(waiting, age=61.0)})
    assert rank == 1, cause
    assert "2 other(s) waited in" in cause


def test_without_gpus_such_a_rank_is_at_work() -> None:
    collective = dump(at("torch/distributed/distributed_c10d.py"), at("hydraft/training/callbacks/divergence.py"))
    ranks = {0: known(collective, False, 61.0), 1: known(dump(*AT_THE_CARD["tolist, after a step"]), False)}
    assert hang.diagnose(ranks)[0] == 1


def test_where_all_wait_none_is_named() -> None:
    ranks = {0: known(dump(*AT_THE_CARD["synchronize"])), 1: known(dump(*AT_THE_CARD["overflow"]), age=62.0)}
    rank, cause = hang.diagnose(ranks)
    assert rank is None
    assert cause.startswith("all 2 ranks stood still for 62 s, and each waited for another or for its GPU, in ")
    assert "runtime/engine.py" in cause or "zero/stage_1_and_2.py" in cause
    assert hang.diagnose({0: ranks[0]})[0] == 0, "a rank that is alone waits for no other"
    assert hang.diagnose({**ranks, 2: {"state": "T", "age": 60.0, "frames": [], "waits": False}})[0] == 2


def test_code_that_is_not_here_is_no_error() -> None:
    assert hang.is_waiting(["f (/nowhere/at/all.py:3)"], on_gpu=True) is False
    assert hang.is_waiting([], on_gpu=True) is False
