"""A pool of jobs with a clock of its own: what a search with limits decides is seen without training anything."""

import hashlib
import json
import math
import random
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from pytest import MonkeyPatch

from hydraft.config.schema import Config
from hydraft.errors import RunStopped
from hydraft.sweep import halving
from hydraft.sweep.candidate import Candidate, Packed
from hydraft.sweep.limits import Limits
from hydraft.sweep.results.ledger import Job, Ledger, State
from hydraft.sweep.rung_jobs import RungJobs
from hydraft.sweep.search_space import make_space
from hydraft.sweep.study import Method, Search

PACKED = Packed.of(OmegaConf.create({"sweep": {"stop_at": None}, "hydra": {"sweep": {"subdir": ""}}}))
"""The config of every job."""


def leave_out_what_only_others_need(patch: MonkeyPatch) -> None:
    """No other process and no later start of the machine sees the files of a simulated sweep, and Hydra does not read its overrides."""
    patch.setattr("os.fsync", lambda handle: None)
    patch.setattr("hydraft.sweep.study.get_lock_file", lambda lock: nullcontext())
    patch.setattr("hydraft.config.cli.quote", lambda override: override)


class OwnLedger(Ledger):
    """A ledger that no other process writes to."""

    def is_claimed(self, key: str, seconds: float = 0.0) -> bool:
        return False

    def _lock(self) -> AbstractContextManager[Any]:
        return nullcontext()


class Session:
    """The folder and the ledger of a sweep whose jobs are not real."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self.ledger = OwnLedger(folder)
        self.here: dict[str, Job] = {}
        self.config = SimpleNamespace(sweep=SimpleNamespace(retry_failed=False, skip_invalid=False, replicas=1))
        self.context = SimpleNamespace(config_loader=None)

    def candidate(self, overrides: list[str]) -> Candidate:
        key = hashlib.sha256(" ".join(overrides).encode()).hexdigest()[:16]
        return Candidate(overrides, PACKED, key=key)

    def add(self, candidates: list[Candidate]) -> list[Job]:
        return self.ledger.add([Job(one.key, ",".join(one.overrides), one.overrides) for one in candidates])

    def records_itself(self, key: str, why: BaseException) -> bool:
        return False

    def settle(self, key: str, error: BaseException) -> None:
        self.ledger.record(key, State.failed)


@dataclass
class Machine:
    """How long things take on the simulated machine."""

    places: int = 8
    step: float = 0.3
    """Seconds of a step with all places taken."""
    shared: float = 0.3
    start: float = 0.2
    noise: float = 0.0
    """Standard deviation of the logarithm of the time between two evaluations."""
    slower: float = 1.0
    """Factor of a step's time at the end of ``until`` seconds, to which it changes evenly."""
    until: float = 1.0
    slots: int = 1
    """Processes; the other places are those of packs."""


@dataclass
class Running:
    task: tuple[int, list[str], Any]
    step: int
    stop: int
    ready: float
    """When it has started, or has made its next steps."""
    started: bool = False


def score(overrides: list[str]) -> float:
    """The loss of a candidate at its end: lowest at a learning rate of 3e-3 and a small rank. No two are equal."""
    values = {one.partition("=")[0]: one.partition("=")[2] for one in overrides}
    return 1 + abs(math.log10(float(values["train.learning_rate"]) / 3e-3)) + 1e-3 * int(values.get("lora.r", 0))


@dataclass
class Pool:
    """Runs the jobs of a search; ``now`` is the time."""

    folder: Path
    machine: Machine
    total: int
    every: int
    seed: int = 0
    now: float = 0.0
    running: dict[int, Running] = field(default_factory=dict)
    trained: dict[str, int] = field(default_factory=dict)
    """The last step of each job, by its learning rate and rank."""

    def search(self, space: list[str], settings: dict[str, Any], budget: float | None = None, **known: Any) -> RungJobs:
        """A search over ``space``, whose time is that of this pool."""
        parsed = OverridesParser.create().parse_overrides(space)
        defaults = {
            "trials": None,
            "sampler": "random",
            "sampler_options": {},
            "pruner": "successive_halving",
            "pruner_options": {},
        }
        chosen = make_space(parsed, OmegaConf.structured(Config))
        limits = Limits(defaults | settings, chosen, halving.options("successive_halving", (defaults | settings)["pruner_options"]), "", budget, began=self.now, clock=lambda: self.now)  # fmt: skip
        limits.total, limits.known = self.total, known.get("known", [])
        if limits.settings["pruner"] in halving.KINDS:
            limits.steps = halving.rungs(self.every, self.total, limits.options.reduction_factor)
        method = Method(**{"trials": 10**6 if budget else None, "seed": self.seed, "shuffle": budget is not None} | {key: value for key, value in limits.settings.items() if value is not None})  # fmt: skip
        session: Any = Session(self.folder)
        session.folder.mkdir(exist_ok=True)
        return RungJobs(session, Search(self.folder, chosen, ["loss"], method), limits=limits)

    def run(self, jobs: RungJobs, until: float = math.inf) -> None:
        """Run the jobs as ``sweep/pool.py`` does, up to a time at which all is killed."""
        dice, more, jobs.slots = random.Random(self.seed), True, self.machine.slots
        with jobs:
            while more or self.running:
                while more and len(self.running) < self.machine.places:
                    task = jobs.next()
                    if task is None:
                        more = bool(self.running) and jobs.waits()
                        break
                    if jobs.may_start(task[0]):
                        self._begin(jobs, task)
                if not self.running:
                    continue
                number = min(self.running, key=lambda each: self.running[each].ready)
                self.now = self.running[number].ready
                if self.now > until:
                    raise KeyboardInterrupt
                self._step(jobs, number, dice)
                more = more or jobs.waits()

    def _begin(self, jobs: RungJobs, task: tuple[int, list[str], Any]) -> None:
        stop = next((int(one.partition("=")[2]) for one in task[1] if one.startswith("sweep.stop_at=")), self.total)
        name = jobs.session.here[jobs.candidates[task[0]].key].name
        (self.folder / name).mkdir(exist_ok=True)
        jobs.session.ledger.record(jobs.candidates[task[0]].key, State.running)
        ready = self.now + self.machine.start
        self.running[task[0]] = Running(task, self.trained.get(name, 0), stop, ready)

    def _step(self, jobs: RungJobs, number: int, dice: random.Random) -> None:
        """The steps of a job up to its next evaluation, and what the pool does after them."""
        one, machine = self.running[number], self.machine
        name = jobs.session.here[jobs.candidates[number].key].name
        if one.started:
            one.step += self.every
            loss = score(one.task[1]) + 3 * math.exp(-3 * one.step / self.total)
            line = {"step": one.step, "eval_loss": loss}
            with (self.folder / name / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        one.started = True
        if one.step >= one.stop:
            self._end(jobs, number, name)
        else:
            drift = 1 + (machine.slower - 1) * min(1.0, self.now / machine.until)
            share = machine.shared + (1 - machine.shared) * len(self.running) / machine.places
            seconds = machine.step * share * drift * dice.lognormvariate(0, machine.noise)
            one.ready = self.now + self.every * seconds
        if any(other.ready <= self.now for other in self.running.values()):
            return  # what happens at the same time is seen together
        for other in list(self.running):
            if jobs.should_stop(other):
                self._end(jobs, other, jobs.session.here[jobs.candidates[other].key].name)

    def _end(self, jobs: RungJobs, number: int, name: str) -> None:
        one, returned, key = self.running.pop(number), JobReturn(), jobs.candidates[number].key
        self.trained[name] = one.step
        done = one.step >= self.total
        result: dict[str, Any] = {"status": "completed", "objective": score(one.task[1])} if done else {"status": "preempted", "step": one.step}  # fmt: skip
        (self.folder / name / "result.json").write_text(json.dumps(result))
        late = number in jobs.late
        state = State.done if done else State.interrupted if late else State.pending
        jobs.session.ledger.record(key, state, **({"objective": result["objective"]} if done else {}))
        returned.status = JobStatus.COMPLETED if done else JobStatus.FAILED
        returned.return_value = 0.0 if done else RunStopped("saved", 15, one.step)
        jobs.ended(number, returned, late)
