"""Which evaluation of a run is the best so far, and since how many there was no better one. No torch.

Everything is computed from the scores of all evaluations, which a checkpoint holds: so a resumed run decides as one that was never
interrupted, and every rank decides the same. The evaluation before training takes no part, since nothing was trained then.
"""

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

from hydraft.config import score
from hydraft.evaluation.metrics import Scores


def value(scores: Scores, name: str) -> float:
    """A score as a cost, of which less is better; infinite if it is missing or not finite (NaN is None in JSON)."""
    found = scores.get(name)
    if found is None or not math.isfinite(found):
        return math.inf
    return found if score.direction(name) == "minimize" else -found


def best(scores: Mapping[int, Scores], name: str, steps: Collection[int] | None = None) -> int | None:
    """The step with the best score, among ``steps`` or after the first one; of equal scores the earliest. None if none is finite."""
    among = sorted(step for step in scores if (step > 0 if steps is None else step in steps))
    step = min(among, key=lambda step: value(scores[step], name), default=None)
    return None if step is None or math.isinf(value(scores[step], name)) else step


class Stall(NamedTuple):
    """The evaluations since the last improvement."""

    evaluations: int
    """How many there were."""
    since: int | None
    """The step of the last improvement; None if no score was finite."""


def stall(scores: Mapping[int, Scores], name: str, min_delta: float) -> Stall:
    """The evaluations without an improvement: a score counts as one if it is better than the last one by more than ``min_delta``.

    So does Keras' EarlyStopping: small improvements add up, since they are measured from the last one that counted.
    """
    reference, found = math.inf, Stall(0, None)
    for step in sorted(step for step in scores if step > 0):
        now = value(scores[step], name)
        if math.isfinite(now) and (found.since is None or now < reference - min_delta):
            reference, found = now, Stall(0, step)
        else:
            found = found._replace(evaluations=found.evaluations + 1)
    return found
