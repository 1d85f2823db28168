"""Exceptions with typed reasons, and the exit codes of the commands. No torch."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Self

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130


class ConfigError(ValueError):
    """A setting that the user has to change; the message names the override. The command exits with code 2."""


class FailureReason(Enum):
    """Why a rank, or a host, failed."""

    config = "config"
    """A setting has to be changed (``ConfigError``)."""
    interrupted = "interrupted"
    """A signal that did not come from the launcher ended the ranks at once."""
    hung = "hung"
    """No rank made progress for ``cluster.hang_timeout`` seconds."""
    killed = "killed"
    """The process was ended by a signal, or exited without reporting an exception."""
    diverged = "diverged"
    """The loss or the gradient norm was not usable (``Diverged``)."""
    out_of_memory = "out_of_memory"
    """A memory allocation failed (``OutOfMemory``)."""
    raised = "raised"
    """Any other exception."""
    host_lost = "host_lost"
    """The host, its agent, its Slurm job or the external launcher ended or stopped responding."""
    stopped = "stopped"
    """The launcher ended the ranks of this host, because another one had failed."""


class Phase(Enum):
    """What a rank was doing when an allocation failed; the value is used in messages."""

    forward = "in the forward pass"
    backward = "in the backward pass"
    optimizer_step = "in the optimizer step"
    evaluation = "during evaluation on the held-out records"
    saving = "while saving a checkpoint"
    optimizer_setup = "while setting up the optimizer"
    model_loading = "while loading the model"
    tokenization = "while tokenizing the records"
    other = "outside of training"


class Diverged(Exception):
    """Training diverged at ``step``; every rank raises this at the same step."""

    def __init__(
        self, message: str, step: int, advice: str, records: dict[str, Any], skip_steps: Sequence[int] = ()
    ) -> None:
        """Create the exception.

        Args:
            message: step, cause and records, on one line.
            step: the optimizer step.
            advice: overrides to try.
            records: the records of the step, by source.
            skip_steps: the steps that a rewound run has to skip; empty if nothing would be left to train on.
        """
        super().__init__(f"{message}; try {advice}")
        self.message = message
        self.step = step
        self.advice = advice
        self.records = records
        self.skip_steps = tuple(skip_steps)


class OutOfMemory(Exception):
    """A memory allocation failed during ``phase``."""

    def __init__(self, message: str, phase: Phase, advice: str | None = None) -> None:
        """``message`` is one line that begins with the phase; ``advice``: overrides to try."""
        super().__init__(message if advice is None else f"{message}; try {advice}")
        self.message = message
        self.phase = phase
        self.advice = advice


@dataclass(frozen=True)
class Failure:
    """How a rank or a host failed. ``to_dict`` and ``from_dict`` carry it between processes as JSON."""

    reason: FailureReason
    message: str
    """One line, without the exception's name and without advice."""
    rank: int | None = None
    """None if a host failed before it had ranks, or if no single rank is at fault."""
    host: str | None = None
    """Name of the host; None for a run on one machine."""
    log: Path | None = None
    """The rank's log file."""
    exception: str | None = None
    """Class name of the exception; None if there was none."""
    advice: str | None = None
    """Overrides to try."""
    phase: Phase | None = None
    """For ``out_of_memory``."""
    step: int | None = None
    """For ``diverged``: the optimizer step."""
    records: dict[str, Any] | None = None
    """For ``diverged``: the records of the step, by source."""
    skip_steps: tuple[int, ...] = ()
    """For ``diverged``: the steps that a rewound run has to skip."""
    signal: int | None = None
    """The signal that ended the process."""

    @property
    def summary(self) -> str:
        """Exception and message, without advice."""
        return self.message if self.exception is None else f"{self.exception}: {self.message}".rstrip()

    @property
    def cause(self) -> str:
        """Exception, message and advice: the ``cause`` of result.json."""
        return self.summary if self.advice is None else f"{self.summary}; try {self.advice}"

    @property
    def subject(self) -> str:
        """What failed, for messages: rank and host, or "the run"."""
        rank = None if self.rank is None else f"rank {self.rank}"
        return " on ".join(part for part in (rank, self.host) if part is not None) or "the run"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = asdict(self)
        log = None if self.log is None else str(self.log)
        phase = None if self.phase is None else self.phase.name
        return {**values, "reason": self.reason.value, "log": log, "phase": phase}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        log, phase = values["log"], values["phase"]
        typed = {
            "reason": FailureReason(values["reason"]),
            "log": None if log is None else Path(log),
            "phase": None if phase is None else Phase[phase],
            "skip_steps": tuple(values["skip_steps"]),
        }
        return cls(**{**values, **typed})

    @classmethod
    def from_exception(cls, error: BaseException) -> Self:
        """The failure of a rank that raised ``error``."""
        name, message = type(error).__name__, " ".join(str(error).split())
        match error:
            case ConfigError():
                return cls(FailureReason.config, message, exception=name)
            case Diverged():
                return cls(
                    FailureReason.diverged, error.message, exception=name, advice=error.advice, step=error.step,
                    records=error.records, skip_steps=error.skip_steps,
                )  # fmt: skip
            case OutOfMemory():
                return cls(
                    FailureReason.out_of_memory, error.message, exception=name, advice=error.advice, phase=error.phase
                )
        return cls(FailureReason.raised, message, exception=name)


class RankFailed(Exception):
    """A rank or a host failed; ``failure`` has the details."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.subject}: {failure.cause}")
        self.failure = failure


class RunFailed(Exception):
    """A command that started and failed; the message is printed on the terminal."""

    def __init__(self, summary: str, code: int = 1, failure: Failure | None = None, details: str = "") -> None:
        """Create the exception.

        Args:
            summary: what happened.
            code: the exit code.
            failure: of the rank or host that failed, if that is the cause.
            details: a second line for the terminal, such as the path of a log.
        """
        super().__init__(f"{summary}\n  {details}" if details else summary)
        self.summary = summary
        self.code = code
        self.failure = failure


class RunStopped(KeyboardInterrupt):
    """A signal ended a run, and the sweep that it was part of; the message is printed on the terminal."""

    def __init__(self, summary: str, signal: int, step: int | None = None, advice: str = "") -> None:
        """Create the exception.

        Args:
            summary: what happened, on one line.
            signal: the signal's number.
            step: the last step of the checkpoint that was saved because of the signal; None if none was saved.
            advice: how to resume, or where to find what had been saved.
        """
        super().__init__(f"{summary}; {advice}" if advice else summary)
        self.summary = summary
        self.signal = signal
        self.step = step
        self.code = 128 + signal
