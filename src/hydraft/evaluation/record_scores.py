"""The loss and the scores of each held-out record, and ``scores.jsonl`` with them in a run's folder. No torch.

Runs that evaluate the same records can be compared record by record (``sweep/results/comparison.py``).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hydraft.data import held_out
from hydraft.data.records import Record
from hydraft.system import files

FILE = "scores.jsonl"


@dataclass
class RecordScores:
    """What a held-out record adds to the scores of a run."""

    index: int
    """Its position among the held-out records."""
    digest: str
    """A hash of its content."""
    loss_sum: float
    """Summed over its trained tokens, in nats."""
    tokens: float
    """What the mean of the loss is taken over: its trained tokens."""
    scores: dict[str, float] = field(default_factory=dict)
    """Of its generated answer, by name. A score of a whole set of answers, such as BLEU, has no part for each record."""


def of_items(records: Sequence[Record], owners: Sequence[int], parts: Sequence[Sequence[float]]) -> list[RecordScores]:
    """The sums for each record; ``parts`` has the summed loss and the count of each item, ``owners`` its record."""
    found = [RecordScores(i, f"{held_out.digest(record, 0):016x}", 0.0, 0.0) for i, record in enumerate(records)]
    for owner, (loss, count) in zip(owners, parts, strict=True):
        found[owner].loss_sum += loss
        found[owner].tokens += count
    return found


def write(folder: Path, scores: Sequence[RecordScores]) -> None:
    """Write ``scores.jsonl``, one line a record."""
    rows = [asdict(one) for one in scores]
    for row in rows:
        row["loss_sum"] = row["loss_sum"] if math.isfinite(row["loss_sum"]) else None  # JSON has no NaN
    files.write_text(folder / FILE, "".join(json.dumps(row) + "\n" for row in rows))
