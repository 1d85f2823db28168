"""What a person sees while a sweep runs: a line as each job begins and ends, read from the ledger. No torch here."""

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from hydraft.sweep.ledger import Job, Ledger, State

LOOK_SECONDS = 0.3


class Watch:
    """``with Watch(ledger, keys):`` tells of the jobs ``keys`` whatever happens to them meanwhile, from a thread of its own."""

    def __init__(self, ledger: Ledger, keys: Sequence[str]) -> None:
        self.ledger = ledger
        self.keys = list(keys)
        self.told: dict[str, tuple[State, int]] = {}
        self.size = -1
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        jobs = self.ledger.jobs()
        self.told = {key: (jobs[key].state, jobs[key].attempt) for key in self.keys}
        states = [jobs[key].state for key in self.keys]
        known = [(state, states.count(state)) for state in State if state is not State.pending]
        before = "".join(f", {count} {state.value}" for state, count in known if count)
        print(f"{self.ledger.folder}: {len(self.keys)} job{'s' if len(self.keys) > 1 else ''}{before}", flush=True)
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self.thread.join()
        self.look()

    def _watch(self) -> None:
        while not self.over.wait(LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Tell what is new."""
        try:
            size = self.ledger.file.stat().st_size
            jobs = self.ledger.jobs() if size != self.size else {}
        except OSError:  # a disk that is away for a moment
            return
        self.size = size
        for number, key in enumerate(self.keys, 1):
            job = jobs.get(key)
            if job is not None and self.told[key] != (job.state, job.attempt):
                self.told[key] = job.state, job.attempt
                print(f"[{number}/{len(self.keys)}] {job.name}: {_told(job)}", flush=True)


def _told(job: Job) -> str:
    if job.state is State.done:
        shown = (
            ""
            if job.objective is None
            else f", objective {job.objective:.4g}"
            if isinstance(job.objective, float)
            else f", objectives {job.objective}"
        )
        return f"done in {job.time - (job.started or job.time):.1f} s{shown}"
    if job.state is State.running:
        return "running" if job.attempt == 1 else f"running, attempt {job.attempt}"
    return f"{job.state.value}{f': {job.error}' if job.error else ''}"
