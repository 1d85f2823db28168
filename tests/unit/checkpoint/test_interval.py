"""``train.save_minutes`` saves one checkpoint in each interval, and communicates in few steps."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch.distributed as dist

from hydraft.checkpoint import interval
from hydraft.checkpoint.interval import SHARE, Interval


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """A process group of one rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def saves(monkeypatch: pytest.MonkeyPatch, seconds: list[float], took: float = 0.0) -> tuple[list[float], int]:
    """The times of checkpoints in a run whose steps take ``seconds``, and the number of broadcasts."""
    now, broadcasts, found = [0.0], [0], []
    monkeypatch.setattr(interval.time, "monotonic", lambda: now[0])
    broadcast = dist.broadcast

    def counted(*arguments: object) -> None:
        broadcasts[0] += 1
        broadcast(*arguments)

    monkeypatch.setattr(interval.dist, "broadcast", counted)
    clock = Interval(1)
    clock.begin(0)
    for step, length in enumerate(seconds, start=1):
        now[0] += length
        if clock.due(step):
            found.append(now[0])
            now[0] += took
            clock.saved(step, took)
    return found, broadcasts[0]


def test_checkpoints_are_a_minute_apart_with_few_broadcasts(monkeypatch: pytest.MonkeyPatch) -> None:
    found, broadcasts = saves(monkeypatch, [5.0] + [0.1] * 3000)  # the first step is a warm-up
    assert [round(at) for at in found] == [60, 120, 180, 240, 300]
    assert broadcasts < 5 * 40


def test_slower_steps_delay_a_checkpoint_only_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = saves(monkeypatch, [0.05] * 600 + [0.5] * 400)  # ten times slower, halfway to the first checkpoint
    assert 60 <= found[0] < 85
    assert saves(monkeypatch, [90.0] * 3)[0] == [90.0, 180.0, 270.0]


def test_slow_checkpoints_are_saved_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = saves(monkeypatch, [1.0] * 2000, took=6.0)
    assert all(later - before >= 6.0 / SHARE for before, later in pairwise(found))
    assert len(found) > 3


def test_null_never_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Interval(None)
    assert not any(clock.due(step) for step in range(1, 100))
