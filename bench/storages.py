"""Counts the bytes of all tensor storages of this process at every moment, and tells weights from activations.

A storage is counted from the operation that returns it until it is freed, whoever holds it: a Python object, an autograd node or
DeepSpeed. A weak reference to the storage tells when that is, as in torch.distributed._tools.mem_tracker. A storage is **of the batch** if it was computed from a tensor
that is, such as an activation. What a kernel of bitsandbytes that is written in Python makes and does not return is its **work**: on a
GPU, its kernels need none. All others are of **weights**: shares, gathered and dequantised copies, and constants.

A storage in a memory-mapped file is pages of that file, which the system takes back when it needs memory: it is counted apart. Not
seen: memory inside a kernel that is not written in Python, such as oneDNN's and gloo's.
"""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

PYTHON_KERNELS = ("bitsandbytes",)
"""Namespaces of operations whose CPU kernels call further operations of torch."""
GIVEN = torch.ops.aten.set_
"""The operation that makes a tensor of a storage that it is given."""
ON_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
PAGE = 4096
"""Bytes; a smaller storage is not looked for in mapped files."""
LARGEST = 12
"""Number of storages in ``Peak.largest``."""
STEP = 1.01
"""The largest storages are listed again when the bytes have grown by this factor: a list takes longer than an operation."""


@dataclass
class Peak:
    """The most bytes of each kind in a phase; not all of one moment."""

    weights: int = 0
    everything: int = 0
    """Weights, batch and work, in this process's own memory."""
    mapped: int = 0
    """In memory-mapped files."""
    largest: tuple[tuple[int, str], ...] = ()
    """The largest storages of weights at (within 1 % of) the peak, with the operation that made each."""


@dataclass
class _Storage:
    reference: weakref.ref[Any]
    size: int
    kind: str
    """A key of ``Storages.now``."""
    made_by: str


class Storages(TorchDispatchMode):
    """Counts storages on the CPU while it is active, in the thread that enters it: ``with Storages() as storages: …``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = {"weights": 0, "batch": 0, "work": 0, "mapped": 0}
        """Bytes that are alive, by kind."""
        self.peaks: dict[str, Peak] = {}
        self._peak = Peak()
        self._listed = 0.0
        self._depth = 0
        """Of the kernels written in Python that are running."""
        self._storages: dict[int, _Storage] = {}

    def phase(self, name: str) -> None:
        """Begin a phase, or continue one: from now on, the peak is that of ``name``."""
        self._peak = self.peaks.setdefault(name, Peak())
        self._listed = 0.0
        self._note()

    def of_batch(self, *tensors: torch.Tensor) -> None:
        """Declare a batch: these tensors and all that is computed from them are of the batch."""
        for tensor in tensors:
            self._see(tensor, "not an operation", "batch")
            self._move(self._of(tensor), "batch")

    def settle(self) -> None:
        """Count what exists now as weights, such as an adapter that has been trained on a batch."""
        for one in list(self._storages.values()):  # a storage may be freed meanwhile
            if one.kind == "batch":
                self._move(one, "weights")

    def largest(self) -> tuple[tuple[int, str], ...]:
        """The largest storages of weights that are alive, with the operation that made each."""
        found = ((one.size, one.made_by) for one in list(self._storages.values()) if one.kind == "weights")
        return tuple(sorted(found, reverse=True)[:LARGEST])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count its inputs and outputs."""
        kwargs = kwargs or {}
        kinds = {self._see(tensor, "not an operation", None) for tensor in _tensors((*args, *kwargs.values()))}
        in_python = func.namespace in PYTHON_KERNELS
        out = self._in_kernel(func, args, kwargs) if in_python else func(*args, **kwargs)
        kind = "batch" if "batch" in kinds else None if func.overloadpacket is GIVEN else "weights"
        for tensor in _tensors(out):
            if self._see(tensor, str(func), "work" if self._depth else kind) == "work" and not self._depth:
                self._move(self._of(tensor), kind or "weights")  # the kernel has returned it
        self._note()
        if kind == "batch" and func._schema.is_mutable:
            for argument, given in zip(func._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    for tensor in _tensors(given):
                        self._move(self._of(tensor), "batch")
        return out

    def _in_kernel(self, func: Any, args: Any, kwargs: Any) -> Any:
        self._depth += 1
        try:
            with self:  # within an operation, the mode is not active
                return func.redispatch(ON_CPU, *args, **kwargs)
        finally:
            self._depth -= 1

    def _see(self, tensor: torch.Tensor, made_by: str, kind: str | None) -> str:
        """Count a tensor's storage if it is new; returns its kind.

        ``kind``: None for a storage that no operation made, which may be in a mapped file.
        """
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        one = self._storages.get(key)
        if one is not None and one.reference() is not storage:
            self._freed(key, one.reference)
            one = None
        if one is None:
            if kind is None:
                kind = "mapped" if size >= PAGE and in_mapped_file(storage.data_ptr()) else "weights"
            one = _Storage(weakref.ref(storage, lambda freed: self._freed(key, freed)), 0, kind, made_by)
            self._storages[key] = one
        if one.size != size:  # new, or resized in place
            self.now[one.kind] += size - one.size
            one.size = size
            self._note()
        return one.kind

    def _of(self, tensor: torch.Tensor) -> _Storage:
        return self._storages[tensor.untyped_storage()._cdata]

    def _move(self, one: _Storage, kind: str) -> None:
        if one.kind != "mapped":
            self.now[one.kind] -= one.size
            self.now[kind] += one.size
            one.kind = kind

    def _freed(self, key: int, reference: Any) -> None:
        one = self._storages.get(key)
        if one is not None and one.reference is reference:  # otherwise another storage has its place already
            self.now[one.kind] -= one.size
            del self._storages[key]

    def _note(self) -> None:
        """Raise the peaks of the phase to the bytes of now."""
        weights, peak = self.now["weights"], self._peak
        peak.mapped = max(peak.mapped, self.now["mapped"])
        peak.everything = max(peak.everything, weights + self.now["batch"] + self.now["work"])
        peak.weights = max(peak.weights, weights)
        if weights > STEP * self._listed:
            peak.largest, self._listed = self.largest(), weights


def _tensors(given: Any) -> Iterator[torch.Tensor]:
    """The tensors with memory in arguments or results, in order; lists of them count, as torch's operations take no other nesting."""
    if isinstance(given, torch.Tensor):
        if given.device.type != "meta":
            yield given
    elif isinstance(given, (tuple, list)):
        for one in given:
            yield from _tensors(one)


def in_mapped_file(address: int) -> bool:
    """Whether this process has mapped a file of weights at an address."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            start, _, end = line.split(maxsplit=1)[0].partition("-")
            if int(start, 16) <= address < int(end, 16):
                return True
    return False
