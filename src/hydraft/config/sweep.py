"""Schema of the ``sweep`` section: name, resume, objectives and replicas of a sweep. No torch."""

from dataclasses import dataclass, field

from hydraft.config.bounds import setting


@dataclass
class SweepConfig:
    """Settings of a sweep (``-m``). They are no part of a job's identity."""

    name: str | None = None
    """Name of the sweep's folder below multirun/. null: date and time."""
    resume: str | None = None
    """Name or folder of a sweep to resume, or ``last``: finished jobs are kept, interrupted ones are resumed, new ones are run."""
    retry_failed: bool = False
    """With ``resume``: also run the jobs that failed."""
    skip_invalid: bool = False
    """Leave out jobs that cannot run, instead of refusing the whole sweep."""
    objective: list[str] = field(default_factory=lambda: ["loss"])
    """What jobs are compared by: ``loss``, a held-out score such as ``exact_match``, ``memory``, ``seconds`` or ``tokens_per_second``."""
    replicas: int = setting(1, at_least=1, at_most=1000, unit="seeds")
    """Runs of each point, with the seeds ``seed``, ``seed`` + 1, …; its result is their mean, with an interval."""
    decide: bool = False
    """After the sweep, run further seeds of the points that cannot be told apart from the best, as many as would probably decide."""
    max_replicas: int = setting(10, at_least=2, at_most=1000, unit="seeds")
    """Most runs of a point that ``decide`` makes."""
