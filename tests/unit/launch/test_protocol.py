"""Messages between launchers and agents, the variables that are forwarded, and the detection of a hang."""

from pathlib import Path

import pytest

from hydraft.errors import Failure, FailureReason
from hydraft.launch.local import hang
from hydraft.launch.remote.channel import Node, severity
from hydraft.launch.remote.protocol import LaunchSpec, forwarded

SPEC = LaunchSpec(["a", "b"], 4, "seed: 42\n", "/run", "token", "/", environment={"WANDB_API_KEY": "secret"})

RANK = '  File "/x/src/hydraft/launch/local/rank.py", line 30 in enter\n'
DUMP = f"""step 3
Thread 0x00007f (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 320 in wait

Current thread 0x00007e (most recent call first):
  File "/x/torch/distributed/distributed_c10d.py", line 2800 in all_reduce
  File "/x/site-packages/deepspeed/runtime/engine.py", line 9 in step
{RANK}"""


def test_a_launch_specification_round_trips_and_hides_its_environment() -> None:
    assert LaunchSpec.from_line(SPEC.to_line()) == SPEC
    assert "secret" not in repr(SPEC)


@pytest.mark.parametrize("line", [b"Welcome to worker-1\n", b'{"secret": 1}\n', b"\n"])
def test_any_other_line_is_refused_without_quoting_it(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a launch specification") as refusal:
        LaunchSpec.from_line(line)
    assert "secret" not in str(refusal.value)


def test_only_the_listed_variables_are_forwarded() -> None:
    environment = dict.fromkeys(
        ["NCCL_DEBUG", "CUDA_VISIBLE_DEVICES", "HF_TOKEN", "HUGGINGFACE_HUB_CACHE", "WANDB_API_KEY", "GLOO_SOCKET_IFNAME",
         "TORCH_LOGS", "PYTORCH_CUDA_ALLOC_CONF", "OMP_NUM_THREADS", "HYDRAFT_CACHE", "https_proxy", "NO_PROXY", "PYTHONHASHSEED"], "1"
    )  # fmt: skip
    kept = {"HOME": "1", "PATH": "1", "AWS_SECRET_ACCESS_KEY": "1", "TORCHELASTIC_RUN_ID": "1", "HYDRAFT_HOST": "1"}
    assert forwarded({**environment, **kept}) == environment
    assert forwarded({"MINE": "1", **kept}, ["MINE"]) == {"MINE": "1"}


def test_the_stack_of_the_training_thread_is_found() -> None:
    frames = hang.main_stack(DUMP)
    assert frames[0] == "all_reduce (/x/torch/distributed/distributed_c10d.py:2800)"
    assert len(frames) == 3
    assert hang.main_stack("nothing") == []


def test_the_rank_that_does_not_wait_is_reported() -> None:
    waits = {"state": "S", "age": 61.0, "frames": hang.main_stack(DUMP)}
    busy = {"state": "R", "age": 60.0, "frames": ["read (/x/data/sources.py:10)", "enter (/x/launch/local/rank.py:30)"]}
    failure = hang.diagnose({0: waits, 1: busy, 2: waits})
    assert failure.rank == 1
    assert failure.message.startswith("made no progress for 60 s in read (data/sources.py:10);")
    assert "2 other rank(s) waited in step (runtime/engine.py:9)" in failure.message
    assert hang.diagnose({0: waits, 1: {"state": "T", "age": 60.0, "frames": []}}).rank == 1
    assert hang.is_hung({0: waits, 1: busy}, 59)
    assert not hang.is_hung({0: waits, 1: {**busy, "age": 1.0}}, 59)
    assert not hang.is_hung({}, 59)


def test_heartbeats_are_read_and_a_finished_rank_is_not_monitored(tmp_path: Path) -> None:
    (tmp_path / "0.pid").write_text("1")
    beat = tmp_path / "0.beat"
    beat.touch()
    monitor = hang.RankMonitor(tmp_path)
    assert monitor.status()[0]["age"] == 0
    assert monitor.status()[0]["age"] > 0
    beat.touch()
    assert monitor.status()[0]["age"] == 0
    beat.unlink()
    assert monitor.status() == {}


def test_the_cause_of_several_failures_is_listed_first() -> None:
    lost_connection = Failure(FailureReason.raised, "Connection closed by peer", exception="RuntimeError")
    no_space = Failure(FailureReason.raised, "No space left on device", exception="OSError")
    diverged = Failure(
        FailureReason.diverged, "step 3: the loss is nan, on record 5 of store.json", exception="Diverged"
    )
    others = [
        Failure(reason, "", host=reason.name)
        for reason in (FailureReason.stopped, FailureReason.host_lost, FailureReason.killed, FailureReason.config)
    ]
    failures = [lost_connection, no_space, diverged, *others]
    nodes = [Node("host", 0.0, failure=failure, ended_at=float(time)) for time, failure in enumerate(failures)]
    found = [node.failure for node in sorted(nodes, key=severity)]
    stopped, host_lost, killed, config = others
    assert found == [config, killed, no_space, diverged, host_lost, lost_connection, stopped]
