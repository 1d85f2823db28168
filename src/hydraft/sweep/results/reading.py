"""Reads the results of a sweep from its folder; with several seeds, its points and what can be told apart. No torch."""

from pathlib import Path

from hydraft.sweep.results import outcome, points
from hydraft.sweep.results.ledger import ABOUT, read_about
from hydraft.sweep.results.outcome import Sweep


def read(folder: Path) -> Sweep:
    """The sweep in ``folder``; one with several seeds as its points.

    Raises:
        ConfigError: there is no sweep in it.
    """
    found = outcome.read(folder)
    if not (folder / ABOUT).exists() or read_about(folder).get("replicas", 1) == 1:
        return found
    from hydraft.sweep.results import verdict  # numpy, only where there is something to compare

    found = points.merged(found)
    verdict.add(found)
    return found
