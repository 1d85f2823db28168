"""Jobs of a search, which are not known beforehand, as jobs of a sweep: checked, named, in the ledger, stopped early. No torch here."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from hydra.core.utils import JobReturn

from hydraft import cli, rundir
from hydraft.sweep.ledger import OVER, Job, State
from hydraft.sweep.session import Candidate, Session, failure, in_folder

LOOK_SECONDS = 1.0
"""Between two looks at the jobs that run."""


class Search(Protocol):
    """What asks for jobs and learns from them."""

    def next(self) -> tuple[int, list[str]] | None:
        """A job's number and overrides; None when there are no more."""

    def look(self, number: int, folder: Path) -> bool:
        """Asked now and then while a job runs: whether it is to stop."""

    def ended(self, number: int, folder: Path, status: str | None) -> None:
        """A job has ended; ``status`` as in its result.json, with "pruned" and "refused" beside."""


class Streamed:
    """A ``pool.Source`` for the jobs that ``search`` asks for."""

    def __init__(self, session: Session, search: Search) -> None:
        self.session = session
        self.search = search
        self.jobs: dict[int, Job] = {}
        self.first: tuple[int, list[str], Candidate] | None = self._ask()
        """Asked for ahead of time: what it takes of the machine sizes the slots."""

    def _ask(self) -> tuple[int, list[str], Candidate] | None:
        """The next job that can run and has not run."""
        while (asked := self.search.next()) is not None:
            number, overrides = asked
            found = self.session.candidate(overrides)
            job = self.session.add([found])[0]
            self.jobs[number] = job
            self.session.here[job.key] = job
            if job.state not in OVER:
                return number, overrides, found
            done = {State.done: "completed", State.refused: "refused"}.get(job.state, job.state.value)
            self.search.ended(number, self.session.folder / job.name, done)
        return None

    def next(self) -> tuple[int, list[str], Any] | None:
        """The next job, in its folder."""
        asked, self.first = self.first or self._ask(), None
        if asked is None:
            return None
        number, overrides, found = asked
        name = self.jobs[number].name
        return number, [*overrides, cli.quote(f"hydra.sweep.subdir={name}")], in_folder(found, name)

    def look(self, number: int) -> bool:
        """Whether the search gives it up."""
        return self.search.look(number, self.session.folder / self.jobs[number].name)

    def ended(self, number: int, returned: JobReturn, stopped: bool) -> None:
        """Tell the ledger and the search."""
        key, folder = self.jobs[number].key, self.session.folder / self.jobs[number].name
        why = failure(returned)
        if why is not None:
            self.session.settle(key, why)
        if stopped and why is not None:
            self.session.ledger.tell(key, State.pruned)
            with suppress(OSError, ValueError):
                known = json.loads((folder / "result.json").read_text())
                rundir.write_json(folder / "result.json", {**known, "status": "pruned"})
        self.session.here[key] = self.session.ledger.jobs()[key]
        self.search.ended(number, folder, "pruned" if stopped and why is not None else rundir.status(folder))
