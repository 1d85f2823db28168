"""The sweep section of the schema; ``hydraft/config/schema.py`` has the others. No torch here."""

from dataclasses import dataclass, field


@dataclass
class SweepConfig:
    """What ``-m`` does with many runs; nothing of it counts in what a job is."""

    name: str | None = None
    """The sweep's folder below multirun/; null for date and time."""
    resume: str | None = None
    """The name (or folder) of a sweep to go on with, or ``last``: what is done stays, what was cut off goes on, what is new runs."""
    retry_failed: bool = False
    """Run the jobs again that failed before."""
    skip_invalid: bool = False
    """Leave out the jobs that cannot run, in place of refusing the whole sweep."""
    objective: list[str] = field(default_factory=lambda: ["loss"])
    """What jobs are compared by: ``loss``, a held-out score such as ``exact_match``, ``memory``, ``seconds``, ``tokens_per_second``."""
