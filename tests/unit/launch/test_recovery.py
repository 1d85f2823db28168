"""Changes that a run makes to its config before it restarts, and failures that are sent between processes."""

import dataclasses
import json
import signal
from pathlib import Path

import pytest

from conftest import config_of
from hydraft.errors import ConfigError, Diverged, Failure, FailureReason, OutOfMemory, Phase
from hydraft.launch import recovery


@pytest.mark.parametrize(
    ("sizes", "halved"), [((4, 1), (2, 2)), ((3, 2), (1, 6)), ((6, 1), (3, 2)), ((5, 2), (2, 5)), ((1, 8), None)]
)
def test_halving_the_micro_batch_keeps_the_global_batch(sizes: tuple[int, int], halved: tuple[int, int] | None) -> None:
    config = config_of(
        f"train.micro_batch_size={sizes[0]}",
        f"train.gradient_accumulation_steps={sizes[1]}",
        "train.auto_micro_batch=true",
    )
    smaller = recovery._halved(config.train)
    found = smaller and (smaller.micro_batch_size, smaller.gradient_accumulation_steps)
    assert found == halved
    assert smaller is None or dataclasses.replace(config, train=smaller).global_batch_size == config.global_batch_size


OUT_OF_MEMORY = Failure.from_exception(OutOfMemory("while loading the model: …", Phase.model_loading))
KILLED = Failure(FailureReason.killed, "killed by SIGKILL", rank=0, signal=signal.SIGKILL)


@pytest.mark.parametrize("failure", [OUT_OF_MEMORY, KILLED], ids=["while loading", "killed"])
def test_only_failures_that_a_smaller_micro_batch_prevents_are_recovered(failure: Failure, tmp_path: Path) -> None:
    config = config_of("train.micro_batch_size=4", "train.auto_micro_batch=true")
    assert not recovery.Attempts(config, tmp_path).recover(failure)
    advice = recovery.advice_on_kill(config.train, failure)
    assert ("train.micro_batch_size=2 train.gradient_accumulation_steps=2" in advice) == (failure is KILLED)


RAISED = [
    ConfigError("lora.r=0: the rank"),
    Diverged("step 3: the loss is nan", 3, "train.learning_rate=1e-05", {"data.json": [5, 14]}, [2, 3]),
    OutOfMemory("in the forward pass: 1 GiB more did not fit", Phase.forward, "train.micro_batch_size=1"),
    RuntimeError("several\n  lines"),
]
CAUSES = [
    "ConfigError: lora.r=0: the rank",
    "Diverged: step 3: the loss is nan; try train.learning_rate=1e-05",
    "OutOfMemory: in the forward pass: 1 GiB more did not fit; try train.micro_batch_size=1",
    "RuntimeError: several lines",
]


@pytest.mark.parametrize(("error", "cause"), list(zip(RAISED, CAUSES, strict=True)))
def test_a_failure_round_trips_as_json(error: Exception, cause: str) -> None:
    failure = Failure.from_exception(error)
    assert failure.cause == cause
    assert Failure.from_dict(json.loads(json.dumps(failure.to_dict()))) == failure
    located = Failure(failure.reason, failure.message, rank=1, host="worker-2", log=Path("/run/rank-1.log"))
    assert Failure.from_dict(json.loads(json.dumps(located.to_dict()))) == located
    assert located.subject == "rank 1 on worker-2"
