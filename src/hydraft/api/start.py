"""Starts a run with the given arguments, shows a bar, and waits for the end. No torch."""

from collections.abc import Sequence
from pathlib import Path

from hydraft.api.command import Command
from hydraft.api.progress import RunBar
from hydraft.errors import RunStopped
from hydraft.system import files


def run(folder: Path, arguments: Sequence[str], progress: bool) -> None:
    """Run ``train.py arguments``, a run in ``folder``, and wait for the end.

    Raises:
        ConfigError: a setting has to be changed.
        RunFailed: the run failed.
        RunStopped: it was interrupted.
    """
    command = Command(arguments)
    try:
        with RunBar(folder, progress) as bar:
            command.wait(bar.follow)
    except RunStopped as error:
        result = files.read_object(folder / "result.json")
        step = result.get("step") if result.get("status") == "preempted" else None
        if step is None:
            raise
        summary = error.summary.partition("; to resume:")[0]
        raise RunStopped(summary, error.signal, step, f"to resume: hydraft.Run({str(folder)!r}).resume()") from None
