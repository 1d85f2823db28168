"""Ends the process of a pack that hangs, so that its jobs fail instead of waiting forever. No torch."""

import faulthandler
import os
import sys
import threading
import time

import psutil

EXIT_HUNG = 75
"""Exit code of a pack that made no progress (EX_TEMPFAIL of sysexits.h)."""

CHECKS = 10
"""Checks within the timeout."""


class Watch:
    """Looks for progress: a turn of the members, or a tenth of a second of CPU time, or of a MiB that is read or written."""

    def __init__(self) -> None:
        self.timeout = 0.0
        """Seconds without progress after which the process ends; 0 for no bound."""
        self.turns = 0
        """Turns of the members, which the pack counts."""
        self.busy = False
        """Whether there are members; without one, the pack waits for jobs."""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        before, at = (0, 0.0), time.monotonic()
        while True:
            time.sleep(min(2.0, self.timeout / CHECKS) if self.timeout else 0.5)
            turns, work = self.turns, _work()
            if turns != before[0] or work - before[1] > 0.1 or not self.busy:
                at = time.monotonic()
            elif self.timeout and time.monotonic() - at > self.timeout:
                print(
                    f"no progress for {self.timeout:g} seconds; the stack of each thread:",
                    file=sys.__stderr__,
                    flush=True,
                )
                faulthandler.dump_traceback(2, all_threads=True)
                os._exit(EXIT_HUNG)
            before = turns, work


def _work() -> float:
    """Seconds of CPU time and MiB of input and output of this process."""
    process = psutil.Process()
    times, moved = process.cpu_times(), process.io_counters()
    return float(times.user + times.system + (moved.read_chars + moved.write_chars) / 2**20)
