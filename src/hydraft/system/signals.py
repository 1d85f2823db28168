"""Shutdown signals in a rank: SIGTERM, SIGUSR1 (Slurm's warning before the time limit) and SIGINT. No torch.

A thread receives them, so a rank that waits in a collective receives them too. Before the first step there is nothing to save, and
a signal ends the rank at once. From the first step on, ``SignalListener.received`` holds the signal, which the early-stop callback
reads after each step; a rank that has not exited when the grace period is over ends itself.

A rank leaves a file for its launcher: ``N.interrupted`` (a signal ended it at once) or ``N.preempted`` (it saved and exited).
"""

import json
import os
import signal
import threading
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from hydraft.system.processes import ProcessId

SHUTDOWN_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class EarlyExit(NamedTuple):
    """Ranks saved a checkpoint and exited, because of a signal."""

    step: int
    """The last step in the checkpoint."""
    signal: int


class SignalListener:
    """The shutdown signals of one rank. A rank's entry point creates it and calls ``start``; without that it receives none."""

    def __init__(self) -> None:
        self.received = 0
        """The first shutdown signal since the first step; 0 before it arrives."""
        self._notes: Path | None = None
        self._rank = 0
        self._grace = 0.0

    def start(self, notes: Path, rank: int) -> None:
        """Receive signals from now on. ``notes`` is the folder where ranks leave files for their launcher."""
        self._notes, self._rank = notes, rank
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in SHUTDOWN_SIGNALS:
            signal.signal(number, lambda *_: None)  # the thread reads it from the pipe
            signal.siginterrupt(number, False)  # no system call of a library fails because of it
        os.register_at_fork(after_in_child=_restore_default_handlers)
        threading.Thread(target=self._receive, args=(reading,), daemon=True).start()

    def allow_saving(self, grace: float) -> None:
        """From now on there is something to save, and a signal leaves ``grace`` seconds for it."""
        self._grace = grace

    def report_early_exit(self, step: int, number: int) -> None:
        """A checkpoint of ``step`` is saved, and the rank exits because of signal ``number``, which some rank received."""
        self._write_note("preempted", EarlyExit(step, number)._asdict())

    def _receive(self, reading: int) -> None:
        while received := os.read(reading, 64):
            for number in received:
                if number not in SHUTDOWN_SIGNALS:  # the pipe carries every signal that has a handler
                    continue
                if self._peer_has_ended():  # no rank can save without it, and its end is the cause to report
                    os._exit(128 + number)
                if not self._grace:
                    self._end(number)
                if not self.received:  # a terminal and a launcher may both have sent it
                    self.received = number
                    timer = threading.Timer(self._grace, self._end, [number])
                    timer.daemon = True
                    timer.start()

    def _end(self, number: int) -> None:
        """End this rank at once, whatever it is doing."""
        assert self._notes is not None
        if early_exit(self._notes) is None:
            why = "the grace period is over" if self.received else "there is nothing to save"
            print(f"ended by {signal.Signals(number).name}: {why}", flush=True)
            self._write_note("interrupted", {"signal": number})
        os._exit(128 + number)

    def _write_note(self, kind: str, note: dict[str, int]) -> None:
        if self._notes is not None:
            staging = self._notes / f".{self._rank}.{kind}"
            staging.write_text(json.dumps(note))
            staging.replace(self._notes / f"{self._rank}.{kind}")

    def _peer_has_ended(self) -> bool:
        """Whether a rank of this machine has ended; its launcher then ends the others with one of these signals."""
        assert self._notes is not None
        return any(not ProcessId.parse(file.read_text()).runs for file in self._notes.glob("*.pid"))


def forward(notes: Path, ranks: int, number: int) -> bool:
    """Send signal ``number`` to all ``ranks`` of this machine; if some have not started, send none and return False."""
    started = list(notes.glob("*.pid"))
    if len(started) < ranks:
        return False
    for file in started:
        ProcessId.parse(file.read_text()).signal(number)
    return True


def interrupted_by(notes: Path, ranks: Collection[int] | None = None) -> int | None:
    """The signal that ended a rank at once, one of ``ranks`` if they are given; None if there was none."""
    notices = [file for file in notes.glob("*.interrupted") if ranks is None or int(file.stem) in ranks]
    found = next(iter(notices), None)
    return None if found is None else int(json.loads(found.read_text())["signal"])


def early_exit(notes: Path) -> EarlyExit | None:
    """The step and signal of ranks that saved and exited early; None if they did not."""
    found = next(notes.glob("*.preempted"), None)
    return None if found is None else EarlyExit(**json.loads(found.read_text()))


def _restore_default_handlers() -> None:
    """In a process that a rank has forked: it is no rank, and signals end it as usual."""
    signal.set_wakeup_fd(-1)
    for number in SHUTDOWN_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
