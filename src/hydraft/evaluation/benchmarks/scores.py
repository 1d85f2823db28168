"""Scores of benchmarks, by name, and ``benchmarks.json`` in a run's folder. No torch."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydraft.config import score
from hydraft.system import files

FILE = "benchmarks.json"


@dataclass(frozen=True)
class Score:
    """What a model reached in a benchmark."""

    task: str
    metrics: dict[str, float]
    """By metric and filter, as lm-evaluation-harness names them: ``acc,none``."""
    errors: dict[str, float]
    """Their standard errors, by the same names."""
    samples: int
    """Questions that were asked."""
    version: str | None
    """Of the task."""
    hash: str
    """Of all questions, prompts and right answers, as lm-evaluation-harness computes it."""
    tasks: int
    """Tasks in it; more than 1 for a group."""

    @property
    def named(self) -> dict[str, float]:
        """The metrics as held-out scores: the first one is ``benchmark/<task>``, the others ``benchmark/<task>/<metric>``."""
        found: dict[str, float] = {}
        for key, value in self.metrics.items():
            metric, _, chosen = key.partition(",")
            name = f"{score.BENCHMARK}{self.task}/{metric}" + ("" if chosen == "none" else f"/{chosen}")
            first = not found and score.direction(name) == "maximize"
            found[f"{score.BENCHMARK}{self.task}" if first else name] = value
        return found


def write(
    folder: Path, weights: str, before: list[Score] | None, after: list[Score], about: dict[str, Any], name: str = FILE
) -> None:
    """Add scores to a folder's benchmarks.json: a benchmark that was run on these weights before is replaced, others stay.

    Args:
        weights: which weights of the run, such as ``adapter``.
        before: the scores of the base; None if they were not computed.
        about: settings and versions.
    """
    known = files.read_object(folder / name)
    of_weights = dict(known.get(weights) or {})
    earlier = {one.task: one for one in before or []}
    for one in after:
        first = earlier.get(one.task)
        of_weights[one.task] = {
            "after": one.metrics,
            "after_stderr": one.errors,
            **({} if first is None else {"before": first.metrics, "before_stderr": first.errors}),
            "samples": one.samples,
            "tasks": one.tasks,
            "version": one.version,
            "task_hash": one.hash,
            "time": time.time(),
            **about,
        }
    files.write_json(folder / name, {**known, weights: of_weights})


def rows(before: list[Score] | None, after: list[Score]) -> list[list[str]]:
    """Rows of a table: benchmark, metric, before, after."""
    earlier = {one.task: one for one in before or []}
    found = []
    for one in after:
        for key, value in one.metrics.items():
            first = earlier.get(one.task)
            cells = ["" if first is None else _shown(first.metrics.get(key), first.errors.get(key))]
            found.append(
                [one.task, key.removesuffix(",none"), *cells, _shown(value, one.errors.get(key)), f"{one.samples:,}"]
            )
    return found


def _shown(value: float | None, error: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")
