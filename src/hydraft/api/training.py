"""Trains a config, as ``python train.py`` does, and waits for it. No torch in this process."""

import os
from pathlib import Path

from hydraft.api import composition, overrides, start
from hydraft.api.run import Run
from hydraft.config.choices import Mode
from hydraft.config.schema import Config
from hydraft.config.sweep import SweepConfig
from hydraft.errors import ConfigError
from hydraft.system import program


def train(config: Config, folder: "str | os.PathLike[str] | None" = None, *, progress: bool = True) -> Run:
    """Train ``config`` in processes of its own, and wait for the end.

    Args:
        config: from ``compose``. What is trained is what it says, also where it was changed since.
        folder: of the run; by default a new one below outputs/. A run of the same config that is there is resumed.
        progress: whether to show a bar and what the run prints.

    Returns:
        The run.

    Raises:
        ConfigError: a setting has to be changed; nothing was started.
        RunFailed: the run failed; the message has the cause.
        RunStopped: it was interrupted (Ctrl-C, or the button of a notebook) and can be resumed. It is a ``KeyboardInterrupt``.
    """
    config = overrides.checked(config)
    if config.mode is not Mode.train:
        other = (
            "hydraft.plan(config)" if config.mode is Mode.plan else f"{program.typed('train')} mode={config.mode.value}"
        )
        raise ConfigError(f"mode={config.mode.value}: is not trained: use {other}, or mode=train")
    if config.resume is not None:
        raise ConfigError(f"resume={config.resume}: a run is resumed with hydraft.Run({config.resume!r}).resume()")
    if config.sweep != SweepConfig():
        raise ConfigError("sweep: its settings are for hydraft.sweep: leave them out")
    place = composition.new_folder() if folder is None else Path(os.fspath(folder)).expanduser().absolute()
    start.run(place, [*overrides.of(config), f"hydra.run.dir={overrides.written(str(place))}"], progress)
    return Run(place)
