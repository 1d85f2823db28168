"""Whether ranks get on, and which of them stands still. No torch here.

Ranks work in step: when one stops, the others wait for it in the next collective. So a run hangs when none of its ranks
has got on for a while, and the one to name is the one that is not waiting.
"""

import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydraft.heartbeat import DUMP

DUMP_SECONDS = 1.0
"""What a rank gets to write its stack."""

COLLECTIVE = re.compile(r"torch/distributed/|deepspeed/comm/")
STOPPED = ("T", "t", "Z", "X")
"""States of a process that cannot answer a signal: stopped, traced, dead."""

Ranks = dict[int, dict[str, Any]]
"""By rank: ``state`` (of its process, as in ps), ``age`` (seconds since it got on), and from ``stacks`` ``frames`` too."""


def status(notes: Path) -> Ranks:
    """The ranks that have begun on this machine."""
    now = time.time()
    ranks: Ranks = {}
    for file in notes.glob("*.pid"):
        beaten = notes / f"{file.stem}.beat"
        if beaten.exists():
            age = max(0.0, now - beaten.stat().st_mtime)
            ranks[int(file.stem)] = {"state": _state(file.read_text()), "age": age}
    return ranks


def hangs(ranks: Ranks, timeout: float) -> bool:
    """Whether no rank has got on for ``timeout`` seconds."""
    return bool(ranks) and min(rank["age"] for rank in ranks.values()) > timeout


def stacks(notes: Path, folder: Path) -> Ranks:
    """Let every rank of this machine write its stack to its log in ``folder``; ``frames`` has it, innermost first."""
    ranks = status(notes)
    logs = {rank: folder / f"rank-{rank}.log" for rank in ranks}
    sizes = {rank: log.stat().st_size if log.exists() else 0 for rank, log in logs.items()}
    for rank in ranks:
        with suppress(ProcessLookupError):
            os.kill(int((notes / f"{rank}.pid").read_text()), DUMP)
    time.sleep(DUMP_SECONDS)
    for rank, known in ranks.items():
        known["frames"] = []
        if known["state"] not in STOPPED and logs[rank].exists():
            with logs[rank].open(encoding="utf-8", errors="replace") as log:
                log.seek(sizes[rank])
                known["frames"] = main_stack(log.read())
    return ranks


def kill(notes: Path) -> None:
    """End every rank of this machine at once."""
    for file in notes.glob("*.pid"):
        with suppress(ProcessLookupError):
            os.kill(int(file.read_text()), signal.SIGKILL)


def main_stack(dump: str) -> list[str]:
    """The frames of the thread that trains, out of what faulthandler wrote of all threads; innermost first."""
    for thread in re.split(r"^(?:Current thread|Thread) .*\n", dump, flags=re.MULTILINE):
        frames = re.findall(r'^ +File "(.+)", line (\d+) in (\S+)', thread, flags=re.MULTILINE)
        if any(name == "enter" and file.endswith("launch/rank.py") for file, _, name in frames):
            return [f"{name} ({file}:{line})" for file, line, name in frames]
    return []


def verdict(ranks: Ranks) -> tuple[int, str]:
    """The rank that stands still, and what is known of it, in a line."""
    waiting = [rank for rank, known in ranks.items() if any(COLLECTIVE.search(f) for f in known["frames"][:8])]
    stopped = [rank for rank, known in ranks.items() if known["state"] in STOPPED]
    silent = [rank for rank, known in ranks.items() if not known["frames"]]
    awake = [rank for rank in ranks if rank not in waiting]
    rank = max(stopped or silent or awake or ranks, key=lambda rank: ranks[rank]["age"])
    known = ranks[rank]
    told = f"stood still for {known['age']:.0f} s"
    if known["state"] in ("T", "t"):
        told += ": its process was stopped (SIGSTOP, or a debugger), so it could not write its stack"
    elif not known["frames"]:
        told += f": its process (state {known['state']}) did not answer, so it wrote no stack"
    else:
        told += f" in {_short(known['frames'])}"
    others = sorted({_short(ranks[other]["frames"]) for other in waiting if other != rank})
    if others:
        told += f"; {len([r for r in waiting if r != rank])} other(s) waited in {', '.join(others)}"
    return rank, f"{told}; every stack is in the ranks' logs"


def _short(frames: list[str]) -> str:
    """The innermost frame outside of torch's and DeepSpeed's communication: what a person knows."""
    frame = next((frame for frame in frames if not COLLECTIVE.search(frame)), frames[0])
    return re.sub(r"\(.*/([^/]+/[^/]+)\)$", r"(\1)", frame)


def _state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
