"""Schema of the ``sweep`` section: name, resume, objectives and replicas of a sweep. No torch."""

from dataclasses import dataclass, field

from hydraft.config import duration
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
    budget: str | None = setting(None, valid=duration.is_duration, allowed=duration.TEXT, hint=", or null for no limit")
    """Time for the whole sweep, such as ``90m``, ``2h`` or ``1h30m``: as many jobs are started, and with successive halving trained on,
    as end within it, by the step times that are measured. null: no limit."""
    stop_at: int | None = setting(None, at_least=1, unit="steps", hint=", or null for the whole run")
    """Optimizer step after which a job saves a checkpoint and stops, to be resumed; its schedule is that of the whole run. Set by a
    search that compares jobs at rungs. null: the job runs to its end."""
