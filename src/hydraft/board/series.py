"""The curves of a run from its metrics.jsonl, in parts. No torch."""

import math
from pathlib import Path
from typing import Any

from hydraft.board import lines
from hydraft.system.redaction import redact_text

LONGEST = 64
"""Characters of a metric's name."""

MOST_NAMES = 200


def part(folder: Path, cursor: str) -> dict[str, Any]:
    """What was logged after a cursor: the step of each line, and by name the values that the lines have.

    A line that says why a step
    had diverged is among ``events`` instead.

    Raises:
        OSError: metrics.jsonl cannot be read.
    """
    found = lines.read(folder / "metrics.jsonl", cursor)
    rows, events = [], []
    for line in found.values:
        step = line.get("step")
        if type(step) is not int:
            continue
        if "sick" in line:
            events.append({"step": step, "text": redact_text(str(line["sick"])[:300])})
            continue
        rows.append((step, {name: value for name, value in line.items() if name != "step" and _is_number(name, value)}))
    names = list(dict.fromkeys(name for _, row in rows for name in row))[:MOST_NAMES]
    return {
        "cursor": found.cursor, "anew": found.anew, "more": found.more, "events": events,
        "steps": [step for step, _ in rows],
        "values": {name: [row.get(name) for _, row in rows] for name in names},
    }  # fmt: skip


def _is_number(name: str, value: Any) -> bool:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return good and len(name) <= LONGEST
