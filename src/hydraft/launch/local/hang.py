"""Whether ranks get on, and which of them stands still. No torch here.

Ranks work in step: when one stops, the others wait for it in the next collective. So a run hangs when none of its ranks
has got on for a while, and the one to name is the one that is not waiting. With GPUs a collective returns at once, and it is
their card that ranks wait for, wherever they next need what it has computed.
"""

import linecache
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydraft.system import hardware
from hydraft.system.heartbeat import DUMP

DUMP_SECONDS = 1.0
"""What a rank gets to write its stack."""

COLLECTIVE = re.compile(r"torch/distributed/|deepspeed/comm/")
LOADER = re.compile(r"/torch/utils/data/|/hydraft/data/")
ON_DEVICE = re.compile(
    r"/torch/(?!utils/cpp_extension|multiprocessing/|serialization|_inductor/|_dynamo/)"
    r"|/deepspeed/(?!ops/op_builder)|/accelerate/(?!data_loader)|/bitsandbytes/|/flash_attn/|/liger_kernel/"
)
"""Files whose code waits where the card is busy: it reads from it, or its queue of kernels is full."""
READS = re.compile(r"\.(item|tolist|cpu|numpy|to|any|all)\(|\b(int|float|bool)\(|synchronize\(")
"""A line that waits for what the card has computed: a tensor to a number, or to main memory."""
STOPPED = ("T", "t", "Z", "X")
"""States of a process that cannot answer a signal: stopped, traced, dead."""

Ranks = dict[int, dict[str, Any]]
"""By rank: ``state`` (of its process, as in ps), ``age`` (seconds since it got on), and from ``stacks`` its ``frames`` and
whether it ``waits``, which its own machine tells: the code is there."""


class Watch:
    """The ranks of this machine, through what they leave in a folder.

    Their beats are files' times; how old one is, is told by a clock that stands still while the machine sleeps, and that no one
    sets.
    """

    def __init__(self, notes: Path) -> None:
        self.notes = notes
        self.seen: dict[Path, tuple[int, float]] = {}

    def status(self) -> Ranks:
        """The ranks that have begun and are not done."""
        now = time.monotonic()
        ranks: Ranks = {}
        for file in self.notes.glob("*.beat"):
            with suppress(OSError):
                beaten = file.stat().st_mtime_ns
                if self.seen.get(file, (0, 0.0))[0] != beaten:
                    self.seen[file] = beaten, now
                state = _state(file.with_suffix(".pid").read_text())
                ranks[int(file.stem)] = {"state": state, "age": now - self.seen[file][1]}
        return ranks

    def stacks(self, folder: Path) -> Ranks:
        """Let every rank write its stack to its log in ``folder``; ``frames`` has it, innermost first."""
        on_gpu = bool(hardware.detect().gpus)
        ranks = self.status()
        logs = {rank: folder / f"rank-{rank}.log" for rank in ranks}
        sizes = {rank: log.stat().st_size if log.exists() else 0 for rank, log in logs.items()}
        for rank in ranks:
            _signal(self.notes / f"{rank}.pid", DUMP)
        time.sleep(DUMP_SECONDS)
        for rank, known in ranks.items():
            known["frames"] = []
            if known["state"] not in STOPPED and logs[rank].exists():
                with logs[rank].open(encoding="utf-8", errors="replace") as log:
                    log.seek(sizes[rank])
                    known["frames"] = main_stack(log.read())
            known["waits"] = waits(known["frames"], on_gpu)
        return ranks

    def kill(self) -> None:
        """End every rank at once."""
        for file in self.notes.glob("*.pid"):
            _signal(file, signal.SIGKILL)


def _signal(pid: Path, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(int(pid.read_text()), number)


def hangs(ranks: Ranks, timeout: float) -> bool:
    """Whether no rank has got on for ``timeout`` seconds."""
    return bool(ranks) and min(rank["age"] for rank in ranks.values()) > timeout


def main_stack(dump: str) -> list[str]:
    """The frames of the thread that trains, out of what faulthandler wrote of all threads; innermost first."""
    for thread in re.split(r"^(?:Current thread|Thread) .*\n", dump, flags=re.MULTILINE):
        frames = re.findall(r'^ +File "(.+)", line (\d+) in (\S+)', thread, flags=re.MULTILINE)
        if any(name == "enter" and file.endswith("launch/rank.py") for file, _, name in frames):
            return [f"{name} ({file}:{line})" for file, line, name in frames]
    return []


def waits(frames: list[str], on_gpu: bool) -> bool:
    """Whether a rank with this stack, innermost first, waits for the others: in a collective, or for its card."""
    if any(COLLECTIVE.search(frame) for frame in frames[:8]):
        return True
    if not on_gpu or not frames or any(LOADER.search(frame) for frame in frames):
        return False
    return bool(ON_DEVICE.search(frames[0]) or READS.search(_source(frames[0])))


def _source(frame: str) -> str:
    """The line of code; empty where its file is not here."""
    file, _, line = frame.partition(" (")[2].removesuffix(")").rpartition(":")
    return linecache.getline(file, int(line))


def verdict(ranks: Ranks) -> tuple[int | None, str]:
    """The rank that stands still, None where all seem to wait, and what is known of it, in a line."""
    waiting = [rank for rank, known in ranks.items() if known.get("waits", waits(known["frames"], on_gpu=False))]
    if len(waiting) == len(ranks) > 1:
        age = max(known["age"] for known in ranks.values())
        places = ", ".join(sorted({_short(known["frames"]) for known in ranks.values()}))
        told = f"all {len(ranks)} ranks stood still for {age:.0f} s, and each waited for another or for its GPU, in {places}"
        return None, f"{told}; every stack is in the ranks' logs"
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
