"""Values and bytes that ranks exchange: JSON or raw bytes in tensors, never a pickle, which could contain code.

Every rank calls the same function. What one rank cannot send is an error on all of them, so that none waits for it.
"""

import json
from typing import Any

import torch
import torch.distributed as dist


def all_gather(value: Any) -> list[Any]:
    """The values of all ranks, in their order; see ``encode`` for what a value may be.

    Raises:
        TypeError: the value of a rank is none that JSON keeps as it is; on every rank.
    """
    raw, error = _try_encode(value)
    shares = all_gather_bytes(raw, failed=error is not None)
    if error is not None:
        raise error
    if None in shares:
        raise TypeError(f"rank {shares.index(None)} had a value that cannot be exchanged: the error is in its log")
    return [json.loads(share) for share in shares if share is not None]


def broadcast(value: Any = None, source: int = 0) -> Any:
    """The value of rank ``source``; what the other ranks pass is not used.

    Raises:
        TypeError: it is none that JSON keeps as it is; on every rank.
    """
    raw, error = _try_encode(value) if dist.get_rank() == source else (b"", None)
    received = broadcast_bytes(raw, source, failed=error is not None)
    if error is not None:
        raise error
    if received is None:
        raise TypeError(f"rank {source} had a value that cannot be exchanged: the error is in its log")
    return json.loads(received)


def all_gather_bytes(raw: bytes, failed: bool = False) -> list[bytes | None]:
    """The bytes of all ranks, in their order; None for a rank that has ``failed`` and has none to give."""
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.int64)
    sizes[dist.get_rank()] = -1 if failed else len(raw)
    dist.all_reduce(sizes)  # each number is added to zeros
    longest = max(int(sizes.max()), 1)
    shares = [torch.empty(longest, dtype=torch.uint8) for _ in sizes]
    dist.all_gather(shares, _tensor(raw, longest))
    return [
        None if size < 0 else share.numpy()[:size].tobytes() for share, size in zip(shares, sizes.tolist(), strict=True)
    ]


def broadcast_bytes(raw: bytes = b"", source: int = 0, failed: bool = False) -> bytes | None:
    """The bytes of rank ``source``; None if it has ``failed`` and has none to give."""
    size = torch.tensor([-1 if failed else len(raw)])
    dist.broadcast(size, source)
    if int(size) < 0:
        return None
    content = _tensor(raw if dist.get_rank() == source else b"", max(int(size), 1))
    dist.broadcast(content, source)
    return content.numpy()[: int(size)].tobytes()


def encode(value: Any) -> bytes:
    """``value`` as JSON. It may consist of None, bool, int, float, str, lists, and dicts whose keys are strings.

    All of these arrive exactly as they are: numbers that are not finite too, and floats to the last bit.

    Raises:
        TypeError: anything else is in it, and where; a tuple would arrive as a list, and a number as a key as a string.
    """
    _check(value, "value")
    return json.dumps(value).encode()


def _try_encode(value: Any) -> tuple[bytes, TypeError | None]:
    try:
        return encode(value), None
    except TypeError as error:
        return b"", error


def _check(value: Any, place: str) -> None:
    kind = type(value)
    if kind is list:
        for index, item in enumerate(value):
            _check(item, f"{place}[{index}]")
    elif kind is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"{place} has the key {key!r}: ranks exchange dicts whose keys are strings")
            _check(item, f"{place}[{key!r}]")
    elif value is not None and kind not in (bool, int, float, str):
        raise TypeError(
            f"{place} is a {kind.__name__}: ranks exchange JSON, so make it a list, a dict, a number or text"
        )


def _tensor(raw: bytes, size: int) -> torch.Tensor:
    """``raw``, followed by zeros, as ``size`` bytes in main memory."""
    return torch.frombuffer(bytearray(raw.ljust(size, b"\0")), dtype=torch.uint8)
