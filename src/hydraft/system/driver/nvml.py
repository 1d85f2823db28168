"""NVML, the driver's library, by ctypes: it needs neither torch nor nvidia-smi. Structures and codes are those of nvml.h."""

import ctypes
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hydraft.system.driver.card import Answer, Card, Gpu

LIBRARIES = (
    "libnvidia-ml.so.1",
    "/usr/lib/wsl/lib/libnvidia-ml.so.1",
    "/run/opengl-driver/lib/libnvidia-ml.so.1",  # NixOS
)
"""Where it may be: on the loader's path, or where WSL and NixOS keep it."""

SUCCESS, NO_PERMISSION, FUNCTION_NOT_FOUND, VERSION_MISMATCH = 0, 4, 13, 18

TEXT = 96
"""Bytes that every name of NVML fits in."""


class _Memory(ctypes.Structure):
    """nvmlMemory_t: what is used has the driver's own part in it."""

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
    """The loaded library; a function that it is too old to have answers FUNCTION_NOT_FOUND."""

    def __init__(self, loaded: ctypes.CDLL) -> None:
        self.loaded = loaded

    def call(self, name: str, *arguments: Any) -> int:
        """The function's code."""
        function = getattr(self.loaded, name, None)
        return FUNCTION_NOT_FOUND if function is None else int(function(*arguments))

    def text(self, name: str, *before: Any) -> str:
        """What a function writes into a buffer; empty where it fails."""
        buffer = ctypes.create_string_buffer(TEXT)
        code = self.call(name, *before, buffer, ctypes.c_uint(TEXT))
        return buffer.value.decode(errors="replace").strip() if code == SUCCESS else ""

    def numbers(self, name: str, *before: Any, count: int = 1) -> list[int]:
        """What a function writes into ``count`` integers; empty where it fails."""
        values = [ctypes.c_int() for _ in range(count)]
        code = self.call(name, *before, *map(ctypes.byref, values))
        return [value.value for value in values] if code == SUCCESS else []

    def reason(self, code: int) -> str:
        """The library's words for ``code``."""
        function = getattr(self.loaded, "nvmlErrorString", None)
        if function is None:
            return f"NVML error {code}"
        function.restype = ctypes.c_char_p
        words: bytes | None = function(code)
        return (words or b"unknown error").decode(errors="replace")


def ask(main_memory: int) -> Answer | None:
    """What NVML says of this machine; None where there is no NVML, or no driver that it reaches.

    Args:
        main_memory: bytes, of a card that has none of its own.
    """
    library = _load()
    if library is None:
        return None
    code = library.call("nvmlInit_v2")
    if code == VERSION_MISMATCH:
        return Answer(failure=f"{library.reason(code)}: restart the machine, which loads the driver that is installed")
    if code != SUCCESS:
        return None
    try:
        version = library.numbers("nvmlSystemGetCudaDriverVersion_v2") or library.numbers(
            "nvmlSystemGetCudaDriverVersion"
        )
        cuda = f"{version[0] // 1000}.{version[0] % 1000 // 10}" if version else ""
        return Answer(_cards(library, main_memory), library.text("nvmlSystemGetDriverVersion"), cuda)
    finally:
        library.call("nvmlShutdown")


def _load() -> _Library | None:
    for name in LIBRARIES:
        with suppress(OSError):
            return _Library(ctypes.CDLL(name))
    return None


def _cards(library: _Library, main_memory: int) -> tuple[Card, ...]:
    """All cards in nvidia-smi's order, which is that of the PCI bus; those that this process may not open are no cards to CUDA."""
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
    mode = library.numbers("nvmlDeviceGetMigMode", handle, count=2)  # now, and after a reset
    slices = _slices(library, handle, gpu) if mode[:1] == [1] else None
    return Card(_with_memory(library, handle, gpu, main_memory), slices)


def _slices(library: _Library, handle: ctypes.c_void_p, card: Gpu) -> tuple[Gpu, ...]:
    """The MIG slices of ``card``; those that this process may not open are none."""
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
    """``gpu`` with its memory; the driver knows none of a card that shares the machine's."""
    new = _MemoryV2(version=ctypes.sizeof(_MemoryV2) | 2 << 24)
    if library.call("nvmlDeviceGetMemoryInfo_v2", handle, ctypes.byref(new)) == SUCCESS and new.total:
        return replace(gpu, memory=new.total, free=new.free, reserved=new.reserved)
    old = _Memory()  # of drivers before 510
    if library.call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(old)) == SUCCESS and old.total:
        return replace(gpu, memory=old.total, free=old.free)
    return replace(gpu, memory=main_memory, unified=bool(main_memory))
