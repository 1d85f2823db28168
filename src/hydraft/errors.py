"""What ends a command: exceptions with typed reasons, and the exit codes. No torch."""

from pathlib import Path

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130


class ConfigError(ValueError):
    """A value that a person has to change; the message names the override. Ends a command with code 2."""


class RunFailed(Exception):
    """A run that began and did not end well; the message is for the terminal."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class RunStopped(KeyboardInterrupt):
    """A signal ended a run, and with it a sweep that it was part of; the message is for the terminal."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.code = 128 + number


class RankFailed(Exception):
    """A rank ended badly; ``cause`` is one line."""

    def __init__(self, rank: int | None, cause: str, log: Path, kind: str = "raised", host: str | None = None) -> None:
        """``rank`` is None where a host failed before it had any, or none is to blame. ``kind``: killed, raised or hung."""
        super().__init__(f"rank {rank}: {cause}")
        self.rank = rank
        self.cause = cause
        self.log = log
        self.kind = kind
        self.host = host

    @property
    def who(self) -> str:
        """Rank and host, for a line of text."""
        rank = None if self.rank is None else f"rank {self.rank}"
        return " on ".join(part for part in (rank, self.host) if part is not None) or "the run"
