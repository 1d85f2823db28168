"""Plans for the form, in a process of its own: ``python -m hydraft.board.planning``. No torch.

Each line of stdin is a command line, as JSON; the answer is a line of JSON. It is what ``python train.py mode=plan`` says, since that is
what runs: train.py's own function, by way of the same boundary to Hydra. Hydra's state is that of a process, and this one has no other
task. It keeps the records that it has measured for as long as their files are the same.
"""

import contextlib
import importlib.util
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from hydraft.board import composing
from hydraft.config import cli, text
from hydraft.config.reference import shown
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.plan import plan, render
from hydraft.plan.plan import Plan
from hydraft.plan.preflight import Measured
from hydraft.sweep import packs
from hydraft.sweep.results.axes import flat
from hydraft.system.program import named, without_name
from hydraft.system.redaction import redact, redact_text
from hydraft.system.source_tree import ROOT

MOST = 8
"""Jobs of a sweep that are planned; the others are checked when it starts."""

A_SEARCH = "all jobs of a sweep must have the same mode"
"""In the refusal of ``mode=plan`` for a search."""

OF_SEARCH = re.compile(r"\W*(hydra[./]|sweep[=.@])")
"""Overrides of a search that a single run does not take."""

FRESH = 60.0
"""Seconds for which measured records are used again."""


class Enough(BaseException):
    """So many jobs are planned."""


def program() -> Any:
    """train.py, as a module."""
    spec = importlib.util.spec_from_file_location("train_program", ROOT / "train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Kept:
    """Records that were measured, and the files that they are from."""

    known: Measured = field(default_factory=dict)
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    since: float = 0.0

    def check(self) -> None:
        """Forget what was measured if a file has changed, or long ago."""
        now = {name: _signature(name) for name in self.files}
        if now != self.files or time.monotonic() - self.since > FRESH:
            self.known.clear()
            self.files.clear()
            self.since = time.monotonic()

    def add(self, config: Config) -> None:
        """Remember the files of ``config``; of other sources nothing is kept, since they may change unseen."""
        data = config.data
        found = {name: _signature(name) for name in (data.train, data.eval) if name is not None}
        if data.mix or None in found.values():
            self.known.clear()
        self.files.update({name: seen for name, seen in found.items() if seen is not None})


def _signature(name: str) -> tuple[int, int] | None:
    try:
        about = os.stat(name)
    except (OSError, ValueError):
        return None
    return (about.st_size, about.st_mtime_ns) if Path(name).is_file() else None


class Planner:
    """Answers command lines."""

    def __init__(self) -> None:
        self.train = program()
        self.kept = Kept()

    def answer(self, arguments: Sequence[str]) -> dict[str, Any]:
        """What ``python train.py mode=plan`` says of a command line.

        ``code`` is its exit code, ``text`` and ``error`` what it prints, ``plans`` the plans as values (of a sweep, those of the first
        jobs), and ``jobs`` the number of jobs of a sweep, if it is known. A search chooses its jobs as it goes: ``searches`` says that
        the plan is that of a run without what is searched.
        """
        sweep = "-m" in arguments
        overrides = [one for one in arguments if one != "-m"]
        found = self._planned(overrides, sweep)
        if sweep and A_SEARCH in found["error"]:
            plain = [one for one in overrides if not composing.is_several(one) and not OF_SEARCH.match(one)]
            return {**self._planned(plain, sweep=False), "searches": True}
        return found

    def _planned(self, overrides: Sequence[str], sweep: bool) -> dict[str, Any]:
        sys.argv = ["train.py", *(["-m"] if sweep else []), "mode=plan", *overrides]
        plans: list[dict[str, Any]] = []
        params: dict[str, Any] = {}
        out, errors = io.StringIO(), io.StringIO()

        def hear(config: Config, planned: Plan, refused: list[str]) -> None:
            if len(plans) == MOST:
                raise Enough
            self.kept.add(config)
            params.update(OmegaConf.select(HydraConfig.get(), "sweeper.params") or {})
            plans.append({**_values(config, planned, refused), "at": out.tell()})

        self.kept.check()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), packs.keeping(self.kept.known):
            code = self._run(hear)
        return {
            "code": code,
            "text": redact_text(out.getvalue()),
            "error": without_name(redact_text(errors.getvalue()).strip(), "train"),
            "plans": plans,
            "jobs": _jobs(overrides, params, plans) if sweep else None,
            "searches": False,
        }

    def _run(self, hear: Callable[[Config, Plan, list[str]], None]) -> int:
        token = render.listener.set(hear)
        try:
            task = self.train.Recorded(self.train.train)
            return cli.run(task, "train", self.train.check_folder)
        except Enough:
            return 0
        except SystemExit as error:  # argparse
            return error.code if isinstance(error.code, int) else 1
        except Exception as error:
            print(f"{named('train')}: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
        finally:
            render.listener.reset(token)


def _values(config: Config, planned: Plan, refused: list[str]) -> dict[str, Any]:
    """A plan for the page."""
    cost, change = planned.cost, planned.change
    phases = {} if cost is None else render.phases(config, planned, cost)
    limit = planned.host_memory if planned.gpu_memory is None else planned.gpu_memory
    return {
        "headline": plan.headline(config),
        "batch": render.batch(config, planned),
        "parameters": None if cost is None else render.parameters(cost),
        "steps": planned.steps,
        "gpu": planned.gpu_memory is not None,
        "limit": limit or None,
        "phases": [{"phase": name, "parts": parts.to_dict(), "total": parts.total} for name, parts in phases.items()],
        "fits": planned.fits,
        "verdict": render.verdict(planned) if cost is not None else None,
        "change": None if change is None else list(change.overrides),
        "refused": refused,
        "values": {name: shown(value) for name, value in redact(flat(text.plain(config))).items()},
        "replicas": config.sweep.replicas,
    }


def _jobs(overrides: Sequence[str], params: Mapping[str, Any], plans: Sequence[dict[str, Any]]) -> int | None:
    """The number of jobs of a sweep; None if it cannot be told.

    Args:
        overrides: of the command line.
        params: ``hydra.sweeper.params``, over which the command line takes precedence.
        plans: of the first jobs.
    """
    try:
        quoted = [cli.quote(one, sweep=True) for one in overrides]
        named = {one.partition("=")[0] for one in quoted}
        quoted += [one for one in cli.params(params) if one.partition("=")[0] not in named]
        parsed = OverridesParser.create().parse_overrides(quoted)
    except (ConfigError, HydraException):
        return None
    count = 1
    for one in parsed:
        if one.is_interval_sweep():
            return None
        if one.is_sweep_override():
            count *= sum(1 for _ in one.sweep_iterator())
    return count * (int(plans[0]["replicas"]) if plans else 1)


def main() -> None:
    """Answer each line of stdin until it ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    planner = Planner()
    for line in sys.stdin:
        try:
            found = planner.answer(json.loads(line))
        except (ConfigError, ValueError) as error:
            found = {"code": 2, "text": "", "error": redact_text(str(error)), "plans": [], "jobs": None}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
