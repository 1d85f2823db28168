"""Ranks exchange JSON and bytes, exactly; what is neither is an error on all of them, and a pickle is never opened."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d

from forks import run_forks
from hydraft.models import exchange
from hydraft.training import process_group

EXACT: dict[str, Any] = {
    "floats": [0.1 + 0.2, -0.0, 5e-324, 1.7976931348623157e308, float("inf"), float("-inf")],
    "numbers": [2**80, -1, True, False, None],
    "text": ["", "等于", '\x00\n"\\', "\ud800", "\U0001f600"],
    "nested": [[], {}, [[{"": []}]]],
}


def test_values_arrive_as_they_were_sent(tmp_path: Path) -> None:
    def both(rank: int) -> list[bool]:
        gathered = exchange.all_gather(EXACT if rank == 0 else [rank] * 1000)  # of different lengths
        nan = exchange.broadcast(float("nan") if rank == 1 else None, source=1)
        raw = exchange.all_gather_bytes(b"\0\xff" * rank)
        return [
            repr(gathered) == repr([EXACT, [1] * 1000]), exchange.broadcast(EXACT if rank == 0 else None) == EXACT,
            nan != nan, raw == [b"", b"\0\xff"], exchange.broadcast_bytes(b"") == b"",
        ]  # fmt: skip

    assert run_forks(both, tmp_path) == [[True] * 5] * 2


WRONG = [
    ((1, 2), "value is a tuple"),
    ({"a": [{1: "b"}]}, "value['a'][0] has the key 1"),
    ({"a": torch.ones(1)}, "value['a'] is a Tensor"),
    ([b"raw"], "value[0] is a bytes"),
]


@pytest.mark.parametrize(("value", "message"), WRONG, ids=["tuple", "key", "tensor", "bytes"])
def test_a_value_that_would_arrive_as_another_is_named(value: Any, message: str) -> None:
    with pytest.raises(TypeError) as error:
        exchange.encode(value)
    assert message in str(error.value)


def test_what_one_rank_cannot_send_is_an_error_on_all(tmp_path: Path) -> None:
    """Otherwise the others would wait for it."""

    def gathering(rank: int) -> Any:
        errors = []
        for action in (exchange.all_gather, exchange.broadcast):
            try:
                action({1, 2} if rank == 0 else 1)
            except TypeError as error:
                errors.append(str(error))
        return [*errors, *exchange.all_gather(rank)]  # the group is still in step

    first, second = run_forks(gathering, tmp_path)
    assert [text.partition(":")[0] for text in first[:2]] == ["value is a set"] * 2
    assert second[:2] == ["rank 0 had a value that cannot be exchanged: the error is in its log"] * 2
    assert first[2:] == second[2:] == [0, 1]


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mknod, (str(self.file),)


def test_a_pickle_from_another_rank_is_not_opened(tmp_path: Path) -> None:
    """Rank 1 sends what torch's own object collective sends; rank 0 has been started as every rank of a run is."""
    canary = tmp_path / "canary"

    def attacked(rank: int) -> Any:
        raw = torch.frombuffer(bytearray(pickle.dumps(Canary(canary))), dtype=torch.uint8)
        if rank == 1:
            dist.broadcast(torch.tensor([raw.numel()]), 1)
            dist.broadcast(raw, 1)
            return None
        process_group.refuse_pickles()
        dist.broadcast_object_list([None], 1)
        return None

    first, _ = run_forks(attacked, tmp_path)
    assert first.startswith("RuntimeError: a collective of Python objects")
    assert not canary.exists()


@pytest.mark.parametrize(
    "call",
    [
        lambda: dist.all_gather_object([None], 1),
        lambda: dist.broadcast_object_list([1]),
        lambda: dist.gather_object(1, [None]),
        lambda: dist.scatter_object_list([None], [1]),
        lambda: c10d._tensor_to_object(torch.zeros(4, dtype=torch.uint8), 4, None),
    ],
    ids=["all_gather", "broadcast", "gather", "scatter", "received"],
)
def test_no_collective_of_torch_sends_or_opens_an_object(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c10d, "_pickler", c10d._pickler)
    monkeypatch.setattr(c10d, "_unpickler", c10d._unpickler)
    process_group.refuse_pickles()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(RuntimeError, match="is refused"):
            call()
    finally:
        dist.destroy_process_group()
