"""Reads and writes checkpoint shards, one tensor at a time, and their headers without the weights.

``.bin`` files are opened with ``weights_only``: they are pickles, and a pickle may contain code. Both formats are memory-mapped, so
a tensor takes memory only while it is used.
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
"""Bytes per element of the data types that a published checkpoint may have, by their names in safetensors."""
WIDTHS = SIZES | {"F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""The same of every data type that is written; a few architectures save buffers of whole numbers."""
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")
CHUNK = 1 << 24

Advance = Callable[[int], None]
"""Called with the number of bytes that were processed."""


@dataclass(frozen=True)
class Tensor:
    """The header of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return WIDTHS[self.dtype] * self.count

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)


def files(folder: Path) -> tuple[list[str], dict[str, str] | None]:
    """The weight files of a checkpoint, in order, and its index (tensor to file; None without an index).

    Safetensors are preferred if both formats exist.

    Raises:
        ConfigError: there are none, or one in the index is missing.
    """
    for index, single in zip(INDEXES, SINGLES, strict=True):
        if (folder / index).is_file():
            placed = weight_map(folder / index)
            names = sorted(set(placed.values()))
            if missing := [name for name in names if not (folder / name).is_file()]:
                raise ConfigError(
                    f"{folder}: {index} lists {missing[0]}, which does not exist ({len(missing)} missing)"
                )
            return names, placed
        if (folder / single).is_file():
            return [single], None
    raise ConfigError(f"{folder}: no weights ({', '.join((*INDEXES, *SINGLES))})")


def numbered(count: int) -> list[str]:
    """The names of ``count`` safetensors files of a checkpoint, as transformers numbers them."""
    if count == 1:
        return [SINGLES[0]]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def complete(folder: Path) -> bool:
    """Whether a folder has the weight files that ``files`` looks for."""
    try:
        files(folder)
    except ConfigError:
        return False
    return True


def check_sizes(folder: Path) -> None:
    """Compare the size of every safetensors file of a checkpoint with what its header says; the weights are not read.

    Raises:
        ConfigError: one is missing, cut off or something else; the message begins with the folder.
    """
    for name in files(folder)[0]:
        if not name.endswith(".safetensors"):
            continue
        size = (folder / name).stat().st_size
        with (folder / name).open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
            try:
                entries = json.loads(file.read(length) if length < size else b"")
                ends = [entry["data_offsets"][1] for key, entry in entries.items() if key != "__metadata__"]
                expected = 8 + length + max(ends, default=0)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
                raise ConfigError(f"{folder}/{name}: cut off, or not safetensors ({size:,} bytes)") from None
        if size != expected:
            raise ConfigError(f"{folder}/{name}: has {size:,} bytes, where its header needs {expected:,}")


def weight_map(path: Path) -> dict[str, str]:
    """The file of each tensor, from an index.

    Raises:
        ConfigError: it is damaged, or lists files elsewhere.
    """
    try:
        placed = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        inside = all(isinstance(name, str) and Path(name).name == name for name in placed.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: not a shard index ({type(error).__name__})") from None
    if not placed or not inside:
        raise ConfigError(f"{path}: its weight_map is empty or lists something other than files in the same folder")
    return dict(placed)


def header(path: Path) -> dict[str, Tensor]:
    """The tensors of a shard, from its header.

    Raises:
        ConfigError: the shard is truncated, not a checkpoint, contains code, or has a data type other than 16 or 32 bit floats.
    """
    with opened(path) as shard:
        found = {name: shard.describe(name) for name in shard.names}
    for name, tensor in found.items():
        if tensor.dtype not in SIZES:
            raise ConfigError(f"{path}: {name} has data type {tensor.dtype}; only {', '.join(SIZES)} are supported")
    return found


@dataclass(frozen=True)
class Shard:
    """An open shard, or other tensors that are made as they are read."""

    names: list[str]
    describe: Callable[[str], Tensor]
    read: Callable[[str], "torch.Tensor"]


@contextmanager
def opened(path: Path) -> Iterator[Shard]:
    """A shard of either format.

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
        mapped = file.read(4) == b"PK\x03\x04"  # files of torch before 1.6 are no zip archives and cannot be mapped
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:  # torch's message recommends running the code; this one does not
        raise ConfigError(
            f"{path}: contains code or other objects than tensors, or is damaged; it is not opened"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ConfigError(f"{path}: truncated, or not a checkpoint ({type(error).__name__})") from None
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ConfigError(f"{path}: not a mapping of names to tensors")
    return weights


def described(tensor: "torch.Tensor") -> Tensor:
    """The header of this tensor."""
    names = {dtype: name for name, dtype in _types().items()}
    return Tensor(names.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))


def empty(tensor: Tensor) -> "torch.Tensor":
    """A tensor of this header, on the meta device.

    Raises:
        KeyError: this module does not write its data type.
    """
    import torch

    return torch.empty(tensor.shape, dtype=_types()[tensor.dtype], device="meta")


def _types() -> "dict[str, torch.dtype]":
    """The data types that are written, by their names in safetensors."""
    import torch

    floats = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    whole = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
    return floats | whole | {"BOOL": torch.bool}


def write(path: Path, layout: Mapping[str, Tensor], tensors: Iterable["torch.Tensor"], advance: Advance) -> str:
    """Write a safetensors file, one tensor at a time, and flush it to the disk.

    The library's own writer takes all tensors of a file at once; here only one is in memory at a time. The format: the length
    of the header (8 bytes, little-endian), the header (JSON: type, shape, offsets), then the data
    (https://github.com/huggingface/safetensors).

    Args:
        path: replaced if it exists; removed after any failure.
        layout: the headers, in order.
        tensors: the tensors, in the same order.

    Returns:
        The file's sha256.

    Raises:
        OSError: the file cannot be written, for example on a full disk.
    """
    import torch

    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in layout.items():
        head[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.bytes]}
        end += tensor.bytes
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data is aligned to 8 bytes, for readers that map the file
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
    while view:  # an unbuffered write may be partial on an almost full disk
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
