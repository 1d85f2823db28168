"""Queries nvidia-smi, for machines whose NVML cannot be loaded. No torch."""

import re
import shutil
import subprocess
from contextlib import suppress
from dataclasses import replace

from hydraft.system.driver.card import FIRST_DRIVER, Card, DriverInfo, Gpu

PROGRAMS = ("nvidia-smi", "/usr/lib/wsl/lib/nvidia-smi")

QUERIES = (
    "name,memory.total,memory.free,memory.reserved,compute_cap,driver_version,uuid,mig.mode.current",
    "name,memory.total,compute_cap",
    "name,memory.total,driver_version",
)
"""Queries to try: an old version rejects the whole query for a field that it lacks. A name may contain commas, so it comes first."""

SECONDS = 30.0
"""Timeout. It takes one to three seconds without persistence mode, and never ends if a card hangs."""

NOT_KNOWN = ("[N/A]", "N/A", "[Not Supported]")

SLICE = re.compile(r"MIG (?P<profile>(?:\d+c\.)?\d+g\.(?P<gigabytes>\d+)gb\S*).*?\(UUID: (?P<uuid>MIG-[^)]+)\)")
CARD = re.compile(r"GPU (?P<index>\d+):")

OF_A_SLICE = 0.95
"""Share of the GiB in its name that a MIG slice really has: 1g.5gb has 4,864 MiB."""


def query(main_memory: int) -> DriverInfo:
    """What nvidia-smi reports about this machine; nothing if it is not installed, or if its output is not understood.

    Args:
        main_memory: bytes, for a GPU that shares the machine's memory.
    """
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        return DriverInfo()
    try:
        for fields in QUERIES:
            output = _run(program, f"--query-gpu={fields}", "--format=csv,noheader,nounits")
            rows = None if output is None else _rows(output, fields.split(","))
            if rows:
                slices = _slices(_run(program, "-L") or "") if any("Enabled" in row.values() for row in rows) else {}
                return _info(rows, slices, main_memory)
    except subprocess.TimeoutExpired:
        return DriverInfo(failure=f"nvidia-smi has not responded for {SECONDS:.0f} s: a card may hang (see dmesg)")
    return DriverInfo()


def _run(program: str, *arguments: str) -> str | None:
    """Its output; None if it fails."""
    try:
        done = subprocess.run(
            [program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
        )
    except OSError:
        return None  # built for another architecture, or not a program
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _rows(output: str, fields: list[str]) -> list[dict[str, str]] | None:
    """The cards' fields by name; None if a line has another number of fields."""
    rows = []
    for line in filter(str.strip, output.splitlines()):
        values = [part.strip() for part in line.rsplit(",", len(fields) - 1)]
        if len(values) != len(fields):
            return None
        rows.append(dict(zip(fields, values, strict=True)))
    return rows


def _info(rows: list[dict[str, str]], slices: dict[int, list[Gpu]], main_memory: int) -> DriverInfo:
    cards = []
    for index, row in enumerate(rows):
        gpu, failure = _gpu(index, row, main_memory)
        parts = None
        if row.get("mig.mode.current") == "Enabled":
            capability = gpu.compute_capability
            parts = tuple(replace(part, compute_capability=capability) for part in slices.get(index, []))
        cards.append(Card(gpu, parts, failure))
    driver = next((row["driver_version"] for row in rows if row.get("driver_version", "")[:1].isdigit()), "")
    return DriverInfo(tuple(cards), driver, _cuda(driver))


def _gpu(index: int, row: dict[str, str], main_memory: int) -> tuple[Gpu, str]:
    """A card, and why it does not respond, if so."""
    total, capability = row["memory.total"], 0.0
    with suppress(ValueError):
        capability = float(row.get("compute_cap", ""))
    uuid = row.get("uuid", "")
    gpu = Gpu(row["name"], 0, capability, index, uuid if uuid.startswith("GPU-") else "")
    memory = _bytes(total)
    if memory:
        free, reserved = _bytes(row.get("memory.free", "")), _bytes(row.get("memory.reserved", "")) or 0
        return replace(gpu, memory=memory, free=free, reserved=reserved), ""
    if total in NOT_KNOWN:
        return replace(gpu, memory=main_memory, unified=True), ""
    return gpu, total.strip("[]") or "it reports no memory"


def _bytes(mebibytes: str) -> int | None:
    return int(mebibytes) << 20 if mebibytes.isdecimal() else None


def _slices(listed: str) -> dict[int, list[Gpu]]:
    """MIG slices by the index of their card, from ``nvidia-smi -L``."""
    found: dict[int, list[Gpu]] = {}
    card = 0
    for line in listed.splitlines():
        if (match := CARD.match(line.strip())) is not None:
            card = int(match["index"])
        elif (match := SLICE.search(line)) is not None:
            memory = round(OF_A_SLICE * int(match["gigabytes"]) * 2**30)
            found.setdefault(card, []).append(Gpu(f"MIG {match['profile']}", memory, 0.0, card, match["uuid"]))
    return found


def _cuda(driver: str) -> str:
    """The newest CUDA version that a driver supports, according to its version; empty if not known."""
    major = driver.split(".")[0]
    runs = [cuda for cuda, first in FIRST_DRIVER.items() if major.isdecimal() and int(major) >= first]
    return f"{max(runs)}.0" if runs else ""
