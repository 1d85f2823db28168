"""A signal that asks a rank to end: SIGTERM, SIGUSR1 (a warning, as Slurm's) or Ctrl-C. No torch here.

A thread hears it, so that a rank that waits in a collective hears it too. Once there is something to save the wish is kept for
``stopper.py``, which asks for it after each step; a rank that has not left by the end of the grace ends itself.

What a rank leaves for its launcher: ``N.asked`` (the signal that ended it at once) or ``N.preempted`` (it left in good order).
"""

import json
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Left(NamedTuple):
    """How ranks left early: their last step is saved."""

    step: int
    number: int
    """The signal."""


_notes: Path | None = None
_rank = 0
_grace = 0.0
_asked = 0


def listen(notes: Path, rank: int) -> None:
    """Hear signals from now on; one that comes before ``begin`` ends this rank. ``notes``: where ranks leave word."""
    global _notes, _rank
    _notes, _rank = notes, rank
    hearing, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    for number in ASKING:
        signal.signal(number, lambda *_: None)  # the thread has it by then
        signal.siginterrupt(number, False)  # no library's system call fails for it
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=_hear, args=(hearing,), daemon=True).start()


def begin(grace: float) -> None:
    """From now on there is something to save, and ``grace`` seconds to do it."""
    global _grace
    _grace = grace


def asked() -> int:
    """The signal that asked this rank to leave; 0 as long as none has."""
    return _asked


def leave(step: int, number: int) -> None:
    """All is saved as of ``step``; ``number`` is the signal that some rank was asked by."""
    _note("preempted", {"step": step, "signal": number})


def pass_on(notes: Path, ranks: int, number: int) -> bool:
    """Ask all ``ranks`` of this machine; False where some have not begun, and none was asked."""
    begun = list(notes.glob("*.pid"))
    if len(begun) < ranks:
        return False
    for file in begun:
        with suppress(ProcessLookupError):
            os.kill(int(file.read_text()), number)
    return True


def ended_by(notes: Path) -> int | None:
    """The signal that ended a rank at once; None where none did."""
    found = next(notes.glob("*.asked"), None)
    return None if found is None else int(json.loads(found.read_text())["signal"])


def left(notes: Path) -> Left | None:
    """How the ranks left, if they did so early."""
    found = next(notes.glob("*.preempted"), None)
    if found is None:
        return None
    note = json.loads(found.read_text())
    return Left(note["step"], note["signal"])


def _hear(hearing: int) -> None:
    global _asked
    while heard := os.read(hearing, 64):
        for number in heard:
            if number not in ASKING:  # others come this way too
                continue
            if _a_peer_is_gone():  # it was the cause, and no rank can save without it
                os._exit(128 + number)
            if not _grace:
                _end(number)
            if not _asked:  # a terminal and a launcher may both have sent it
                _asked = number
                late = threading.Timer(_grace, _end, [number])
                late.daemon = True
                late.start()


def _end(number: int) -> None:
    """End this rank at once, whatever it is doing."""
    assert _notes is not None
    if left(_notes) is None:
        print(
            f"ended by {signal.Signals(number).name}: {'not done in time' if _asked else 'nothing to save'}", flush=True
        )
        _note("asked", {"signal": number})
    os._exit(128 + number)


def _note(kind: str, note: dict[str, int]) -> None:
    if _notes is not None:
        staging = _notes / f".{_rank}.{kind}"
        staging.write_text(json.dumps(note))
        staging.replace(_notes / f"{_rank}.{kind}")


def _a_peer_is_gone() -> bool:
    """Whether a rank of this machine has ended; its launcher then ends the others, by one of these signals."""
    assert _notes is not None
    return any(not Path(f"/proc/{file.read_text()}").exists() for file in _notes.glob("*.pid"))


def _forget() -> None:
    """A process that a rank forked is none, and ends as any other."""
    signal.set_wakeup_fd(-1)
    for number in ASKING:
        signal.signal(number, signal.SIG_DFL)
