"""Starts a run with the given arguments, shows a bar, and waits for the end. No torch."""

from collections.abc import Sequence
from pathlib import Path

from hydraft.api.command import Command
from hydraft.api.progress import RunBar


def run(folder: Path, arguments: Sequence[str], progress: bool) -> None:
    """Run ``train.py arguments``, a run in ``folder``, and wait for the end.

    Raises:
        ConfigError: a setting has to be changed.
        RunFailed: the run failed.
        RunStopped: it was interrupted.
    """
    command = Command(arguments)
    with RunBar(folder, progress) as bar:
        command.wait(bar.follow)
