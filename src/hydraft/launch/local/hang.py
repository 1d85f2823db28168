"""Detects a run that hangs, and the rank that causes it. No torch.

Ranks work in lockstep: when one stops, the others wait for it in the next collective. So a run hangs when none of its ranks has
made progress for some time, and the rank to name is the one that is not waiting. With GPUs a collective returns at once, and
ranks wait for their GPU instead, wherever they next need a result of it.
"""

import linecache
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydraft.errors import Failure, FailureReason
from hydraft.system import hardware
from hydraft.system.heartbeat import DUMP_SIGNAL
from hydraft.system.processes import ProcessId

DUMP_SECONDS = 1.0
"""Time for a rank to write its stack."""

COLLECTIVE = re.compile(r"torch/distributed/|deepspeed/comm/")
LOADER = re.compile(r"/torch/utils/data/|/hydraft/data/")
ON_DEVICE = re.compile(
    r"/torch/(?!utils/cpp_extension|multiprocessing/|serialization|_inductor/|_dynamo/)"
    r"|/deepspeed/(?!ops/op_builder)|/accelerate/(?!data_loader)|/bitsandbytes/|/flash_attn/|/liger_kernel/"
)
"""Files whose code waits for a busy GPU: it reads a result, or the queue of kernels is full."""
READS = re.compile(r"\.(item|tolist|cpu|numpy|to|any|all)\(|\b(int|float|bool)\(|synchronize\(")
"""A line of code that waits for a result of the GPU: it moves a tensor to a number, or to main memory."""
STOPPED = ("T", "t", "Z", "X")
"""States of a process that cannot handle a signal: stopped, traced, dead."""
ENDS = ("done", "json", "interrupted", "preempted")
"""Notes that a rank leaves as it ends: ``N.done`` is empty, and ``N.json`` is why it failed."""

Ranks = dict[int, dict[str, Any]]
"""By rank: ``state`` (of its process, as in ps) and ``age`` (seconds since its last progress); ``stacks`` adds its ``frames`` and
whether it ``waits``, which is determined on the rank's own machine, where the source code is."""


class RankMonitor:
    """Monitors the ranks of this machine, through the files that they leave in a folder.

    A heartbeat is the modification time of a file. Its age is measured by the monotonic clock, which stops while the machine is
    suspended, and which is never set.
    """

    def __init__(self, notes: Path) -> None:
        self.notes = notes
        self.seen: dict[Path, tuple[int, float]] = {}

    def status(self) -> Ranks:
        """The ranks that have started and are not done."""
        now = time.monotonic()
        ranks: Ranks = {}
        for file in self.notes.glob("*.beat"):
            with suppress(OSError):
                modified = file.stat().st_mtime_ns
                if self.seen.get(file, (0, 0.0))[0] != modified:
                    self.seen[file] = modified, now
                state = ProcessId.parse(file.with_suffix(".pid").read_text()).state
                ranks[int(file.stem)] = {"state": state, "age": now - self.seen[file][1]}
        return ranks

    def stacks(self, folder: Path) -> Ranks:
        """Have every rank write its stack to its log in ``folder``; ``frames`` holds it, innermost first."""
        on_gpu = bool(hardware.detect().gpus)
        ranks = self.status()
        logs = {rank: folder / f"rank-{rank}.log" for rank in ranks}
        sizes = {rank: log.stat().st_size if log.exists() else 0 for rank, log in logs.items()}
        for rank in ranks:
            with suppress(OSError):
                ProcessId.parse((self.notes / f"{rank}.pid").read_text()).signal(DUMP_SIGNAL)
        time.sleep(DUMP_SECONDS)
        for rank, known in ranks.items():
            known["frames"] = []
            if known["state"] not in STOPPED and logs[rank].exists():
                with logs[rank].open(encoding="utf-8", errors="replace") as log:
                    log.seek(sizes[rank])
                    known["frames"] = main_stack(log.read())
            known["waits"] = is_waiting(known["frames"], on_gpu)
        return ranks

    def kill(self) -> None:
        """End every rank at once."""
        for process in processes(self.notes).values():
            process.signal(signal.SIGKILL)


def processes(notes: Path) -> dict[int, ProcessId]:
    """The processes of the ranks that have started on this machine, by rank."""
    found = {}
    for file in notes.glob("*.pid"):
        with suppress(OSError):
            found[int(file.stem)] = ProcessId.parse(file.read_text())
    return found


def has_noted_end(notes: Path, rank: int) -> bool:
    """Whether a rank has reported how it ended: done, failed, interrupted or preempted."""
    return any((notes / f"{rank}.{end}").exists() for end in ENDS)


def gone(notes: Path) -> set[int]:
    """The ranks whose process has ended without a note."""
    ended = [rank for rank, process in processes(notes).items() if not process.runs]
    return {rank for rank in ended if not has_noted_end(notes, rank)}


def is_hung(ranks: Ranks, timeout: float) -> bool:
    """Whether no rank has made progress for ``timeout`` seconds."""
    return bool(ranks) and min(rank["age"] for rank in ranks.values()) > timeout


def main_stack(dump: str) -> list[str]:
    """The frames of the training thread, from faulthandler's dump of all threads; innermost first."""
    for thread in re.split(r"^(?:Current thread|Thread) .*\n", dump, flags=re.MULTILINE):
        frames = re.findall(r'^ +File "(.+)", line (\d+) in (\S+)', thread, flags=re.MULTILINE)
        if any(name == "enter" and file.endswith("launch/local/rank.py") for file, _, name in frames):
            return [f"{name} ({file}:{line})" for file, line, name in frames]
    return []


def is_waiting(frames: list[str], on_gpu: bool) -> bool:
    """Whether a rank with this stack, innermost first, waits for the other ranks: in a collective, or for its GPU."""
    if any(COLLECTIVE.search(frame) for frame in frames[:8]):
        return True
    if not on_gpu or not frames or any(LOADER.search(frame) for frame in frames):
        return False
    return bool(ON_DEVICE.search(frames[0]) or READS.search(_source(frames[0])))


def _source(frame: str) -> str:
    """The line of code; empty if the file is not on this machine."""
    file, _, line = frame.partition(" (")[2].removesuffix(")").rpartition(":")
    return linecache.getline(file, int(line))


def diagnose(ranks: Ranks) -> Failure:
    """The rank that hangs, with what it does; ``Failure.rank`` is None if all ranks seem to be waiting."""
    waiting = [rank for rank, known in ranks.items() if known.get("waits", is_waiting(known["frames"], on_gpu=False))]
    stacks = "every stack is in the ranks' logs"
    if len(waiting) == len(ranks) > 1:
        age = max(known["age"] for known in ranks.values())
        frames = ", ".join(sorted({_short(known["frames"]) for known in ranks.values()}))
        all_ranks = f"all {len(ranks)} ranks made no progress for {age:.0f} s"
        message = f"{all_ranks}, and each was waiting for another rank or for its GPU, in {frames}; {stacks}"
        return Failure(FailureReason.hung, message)
    stopped = [rank for rank, known in ranks.items() if known["state"] in STOPPED]
    silent = [rank for rank, known in ranks.items() if not known["frames"]]
    busy = [rank for rank in ranks if rank not in waiting]
    rank = max(stopped or silent or busy or ranks, key=lambda rank: ranks[rank]["age"])
    message = _describe(ranks[rank])
    others = [ranks[other]["frames"] for other in waiting if other != rank]
    if others:
        message += f"; {len(others)} other rank(s) waited in {', '.join(sorted(set(map(_short, others))))}"
    return Failure(FailureReason.hung, f"{message}; {stacks}", rank)


def _describe(known: dict[str, Any]) -> str:
    """What is known of the rank that hangs."""
    message = f"made no progress for {known['age']:.0f} s"
    if known["state"] in ("T", "t"):
        return f"{message}: its process was stopped (SIGSTOP, or a debugger), so it could not write its stack"
    if not known["frames"]:
        return f"{message}: its process (state {known['state']}) did not respond, so it wrote no stack"
    return f"{message} in {_short(known['frames'])}"


def _short(frames: list[str]) -> str:
    """The innermost frame outside of torch's and DeepSpeed's communication code."""
    frame = next((frame for frame in frames if not COLLECTIVE.search(frame)), frames[0])
    return re.sub(r"\(.*/([^/]+/[^/]+)\)$", r"(\1)", frame)
