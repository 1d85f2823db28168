"""Queries NVML, the driver's library, with ctypes. Structures and codes are those of nvml.h. No torch."""

import ctypes
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hydraft.system.driver.card import Card, DriverInfo, Gpu

LIBRARIES = (
    "libnvidia-ml.so.1",
    "/usr/lib/wsl/lib/libnvidia-ml.so.1",
    "/run/opengl-driver/lib/libnvidia-ml.so.1",  # NixOS
)
"""Where it may be installed: on the loader's path, or in the folders of WSL and NixOS."""

SUCCESS, NO_PERMISSION, FUNCTION_NOT_FOUND, VERSION_MISMATCH = 0, 4, 13, 18

TEXT = 96
"""Bytes of a buffer that holds any name."""


class _Memory(ctypes.Structure):
    """nvmlMemory_t: ``used`` includes the driver's own share."""

    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class _MemoryV2(ctypes.Structure):
    """nvmlMemory_v2_t."""

    _fields_ = [
        ("version", ctypes.c_uint),
        ("total", ctypes.c_ulonglong),
        ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    ]


class _Library:
    """The loaded library; a function that an old version lacks returns FUNCTION_NOT_FOUND."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self.loaded = loaded

    def call(self, name: str, *arguments: Any) -> int:
        """Call a function; returns its code."""
        function = getattr(self.loaded, name, None)
        return FUNCTION_NOT_FOUND if function is None else int(function(*arguments))

    def text(self, name: str, *before: Any) -> str:
        """The text that a function writes to a buffer; empty if it fails."""
        buffer = ctypes.create_string_buffer(TEXT)
        code = self.call(name, *before, buffer, ctypes.c_uint(TEXT))
        return buffer.value.decode(errors="replace").strip() if code == SUCCESS else ""

    def numbers(self, name: str, *before: Any, count: int = 1) -> list[int]:
        """The ``count`` integers that a function writes; empty if it fails."""
        values = [ctypes.c_int() for _ in range(count)]
        code = self.call(name, *before, *map(ctypes.byref, values))
        return [value.value for value in values] if code == SUCCESS else []

    def reason(self, code: int) -> str:
        """The library's description of ``code``."""
        function = getattr(self.loaded, "nvmlErrorString", None)
        if function is None:
            return f"NVML error {code}"
        function.restype = ctypes.c_char_p
        text: bytes | None = function(code)
        return (text or b"unknown error").decode(errors="replace")


def query(main_memory: int) -> DriverInfo | None:
    """What NVML reports about this machine; None without NVML or a driver.

    Args:
        main_memory: bytes, for a GPU that shares the machine's memory.
    """
    library = _load()
    if library is None:
        return None
    code = library.call("nvmlInit_v2")
    if code == VERSION_MISMATCH:
        return DriverInfo(failure=f"{library.reason(code)}: restart the machine to load the driver that is installed")
    if code != SUCCESS:
        return None
    try:
        version = library.numbers("nvmlSystemGetCudaDriverVersion_v2") or library.numbers(
            "nvmlSystemGetCudaDriverVersion"
        )
        cuda = f"{version[0] // 1000}.{version[0] % 1000 // 10}" if version else ""
        return DriverInfo(_cards(library, main_memory), library.text("nvmlSystemGetDriverVersion"), cuda)
    finally:
        library.call("nvmlShutdown")


def _load() -> _Library | None:
    for name in LIBRARIES:
        with suppress(OSError):
            return _Library(ctypes.CDLL(name))
    return None


def _cards(library: _Library, main_memory: int) -> tuple[Card, ...]:
    """All cards in nvidia-smi's order (by PCI bus), without those that this process may not open, which CUDA does not count."""
    cards: list[Card] = []
    for number in range(sum(library.numbers("nvmlDeviceGetCount_v2"))):
        handle, index = ctypes.c_void_p(), len(cards)
        code = library.call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(number), ctypes.byref(handle))
        if code == NO_PERMISSION:
            continue
        if code != SUCCESS:
            cards.append(Card(Gpu(f"card {index}", 0, 0.0, index), failure=library.reason(code)))
            continue
        cards.append(_card(library, handle, index, main_memory))
    return tuple(cards)


def _card(library: _Library, handle: ctypes.c_void_p, index: int, main_memory: int) -> Card:
    capability = library.numbers("nvmlDeviceGetCudaComputeCapability", handle, count=2)
    gpu = Gpu(
        library.text("nvmlDeviceGetName", handle) or f"card {index}",
        0,
        float(f"{capability[0]}.{capability[1]}") if capability else 0.0,
        index,
        library.text("nvmlDeviceGetUUID", handle),
    )
    mode = library.numbers("nvmlDeviceGetMigMode", handle, count=2)  # the current mode, and that after a reset
    slices = _slices(library, handle, gpu) if mode[:1] == [1] else None
    return Card(_with_memory(library, handle, gpu, main_memory), slices)


def _slices(library: _Library, handle: ctypes.c_void_p, card: Gpu) -> tuple[Gpu, ...]:
    """The MIG slices of ``card``, without those that this process may not open."""
    found = []
    for number in range(sum(library.numbers("nvmlDeviceGetMaxMigDeviceCount", handle))):
        part = ctypes.c_void_p()
        code = library.call("nvmlDeviceGetMigDeviceHandleByIndex", handle, ctypes.c_uint(number), ctypes.byref(part))
        if code != SUCCESS:
            continue
        name = library.text("nvmlDeviceGetName", part) or f"{card.name} MIG"
        one = replace(card, name=name, uuid=library.text("nvmlDeviceGetUUID", part))
        found.append(_with_memory(library, part, one, 0))
    return tuple(found)


def _with_memory(library: _Library, handle: ctypes.c_void_p, gpu: Gpu, main_memory: int) -> Gpu:
    """``gpu`` with its memory; the driver reports none for a GPU that shares the machine's memory."""
    new = _MemoryV2(version=ctypes.sizeof(_MemoryV2) | 2 << 24)
    if library.call("nvmlDeviceGetMemoryInfo_v2", handle, ctypes.byref(new)) == SUCCESS and new.total:
        return replace(gpu, memory=new.total, free=new.free, reserved=new.reserved)
    old = _Memory()  # drivers before 510
    if library.call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(old)) == SUCCESS and old.total:
        return replace(gpu, memory=old.total, free=old.free)
    return replace(gpu, memory=main_memory, unified=bool(main_memory))
