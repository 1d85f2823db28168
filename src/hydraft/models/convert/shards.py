"""Checkpoint shards: what stands in them without reading them, one tensor at a time, and writing a new one.

``.bin`` files are opened with ``weights_only``: they are pickles, and a pickle may hold code. Both kinds are mapped into
memory, so a tensor takes room only while it is used.
"""

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydraft.errors import ConfigError

if TYPE_CHECKING:
    import torch

SIZES = {"F32": 4, "BF16": 2, "F16": 2}
"""Bytes an element, by the safetensors name of each data type that a published checkpoint may have."""
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")
CHUNK = 1 << 24

Advance = Callable[[int], None]
"""Told of each number of bytes that were dealt with."""


@dataclass(frozen=True)
class Tensor:
    """What a header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return SIZES[self.dtype] * math.prod(self.shape)


def files(folder: Path) -> tuple[list[str], dict[str, str] | None]:
    """The weight files of a checkpoint, in order, and what its index says (tensor to file; None without an index).

    Safetensors are preferred where both kinds are there.

    Raises:
        ConfigError: there are none, or the index names one that is missing.
    """
    for index, single in zip(INDEXES, SINGLES, strict=True):
        if (folder / index).is_file():
            placed = _weight_map(folder / index)
            names = sorted(set(placed.values()))
            if missing := [name for name in names if not (folder / name).is_file()]:
                raise ConfigError(f"{folder}: {index} names {missing[0]}, which is not there ({len(missing)} missing)")
            return names, placed
        if (folder / single).is_file():
            return [single], None
    raise ConfigError(f"{folder}: no weights ({', '.join((*INDEXES, *SINGLES))})")


def _weight_map(path: Path) -> dict[str, str]:
    try:
        placed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        inside = all(isinstance(name, str) and Path(name).name == name for name in placed.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: not an index of shards ({type(error).__name__})") from None
    if not placed or not inside:
        raise ConfigError(f"{path}: its weight_map is empty or names something other than files beside it")
    return dict(placed)


def header(path: Path) -> dict[str, Tensor]:
    """The tensors of a shard, from what it says of itself.

    Raises:
        ConfigError: the shard is truncated, no checkpoint, holds code, or a data type that is not 16 or 32 bit floating.
    """
    with opened(path) as shard:
        found = {name: shard.describe(name) for name in shard.names}
    for name, tensor in found.items():
        if tensor.dtype not in SIZES:
            raise ConfigError(f"{path}: {name} has data type {tensor.dtype}; only {', '.join(SIZES)} are published")
    return found


@dataclass(frozen=True)
class Shard:
    """An open shard."""

    names: list[str]
    describe: Callable[[str], Tensor]
    read: Callable[[str], "torch.Tensor"]


@contextmanager
def opened(path: Path) -> Iterator[Shard]:
    """A shard of either kind.

    Raises:
        ConfigError: see ``header``.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as shard:

                def describe(name: str) -> Tensor:
                    part = shard.get_slice(name)
                    return Tensor(part.get_dtype(), tuple(part.get_shape()))

                yield Shard(list(shard.keys()), describe, shard.get_tensor)
        except SafetensorError as error:
            raise ConfigError(f"{path}: truncated, or not safetensors ({error})") from None
    else:
        weights = _unpickle(path)
        yield Shard(list(weights), lambda name: described(weights[name]), weights.__getitem__)


def _unpickle(path: Path) -> Mapping[str, "torch.Tensor"]:
    import pickle

    import torch

    with path.open("rb") as file:
        mapped = file.read(4) == b"PK\x03\x04"  # what torch wrote before version 1.6 is no zip and cannot be mapped
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:  # torch's message recommends to run the code; ours does not
        raise ConfigError(f"{path}: holds code or other things than tensors, or is damaged; it is not opened") from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ConfigError(f"{path}: truncated, or no checkpoint ({type(error).__name__})") from None
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ConfigError(f"{path}: no mapping of names to tensors")
    return weights


def described(tensor: "torch.Tensor") -> Tensor:
    """What a header says of this tensor."""
    import torch

    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    return Tensor(names.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))


def write(path: Path, layout: Mapping[str, Tensor], tensors: Iterable["torch.Tensor"], advance: Advance) -> str:
    """Write a safetensors file, one tensor at a time, and flush it to the disk.

    The library's own writer takes all tensors of a file at once; here one at a time is in memory. The format: the length
    of the header (8 bytes, little-endian), the header (JSON: type, shape, place), then the numbers
    (https://github.com/huggingface/safetensors).

    Args:
        path: not yet there, or of no worth; on any failure it is removed.
        layout: what comes, in order.
        tensors: the same, in the same order.

    Returns:
        The file's sha256.

    Raises:
        OSError: the disk is full, say.
    """
    import torch

    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in layout.items():
        head[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.bytes]}
        end += tensor.bytes
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # numbers begin at a multiple of 8, for readers that map the file
    digest = hashlib.sha256()
    try:
        with path.open("wb", buffering=0) as file:
            _put(file, struct.pack("<Q", len(text)) + text, digest)
            for (name, expected), value in zip(layout.items(), tensors, strict=True):
                assert described(value) == expected, name
                numbers = memoryview(value.contiguous().view(-1).view(torch.uint8).numpy().data)
                for start in range(0, len(numbers), CHUNK):
                    advance(_put(file, numbers[start : start + CHUNK], digest))
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def _put(file: Any, data: Any, digest: Any) -> int:
    view = memoryview(data)
    while view:  # an unbuffered write may take only a part, on a disk that is nearly full
        view = view[file.write(view) :]
    digest.update(data)
    return len(data)


def sha256(path: Path, advance: Advance) -> str:
    """A file's sha256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
            advance(len(data))
    return digest.hexdigest()
