"""The folder of a single run, which Hydra makes before it calls the task: it is checked first, and an empty one is removed. No torch."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal import hydra as internal
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from hydraft.errors import ConfigError
from hydraft.system import files

Check = Callable[[DictConfig, Path, str], None]
"""Gets the composed config, the folder, and ``hydra.run.dir`` as it was typed; raises ``ConfigError`` to refuse it."""


@contextmanager
def checked(check: Check | None) -> Iterator[None]:
    """While the block runs Hydra, ``check`` the folder of a single run before anything is written there.

    What Hydra makes of the path is removed at the end of the run if nothing was written there: a refused run and a plan leave
    no folder.

    Raises:
        ConfigError: the folder is refused, or cannot be made.
    """
    run_job = internal.run_job

    def in_checked_folder(**given: Any) -> Any:
        config = given["config"]
        HydraConfig.instance().set_config(config)  # as run_job does, for a folder with ${hydra:…} in it
        typed = str(OmegaConf.select(config, given["job_dir_key"]))
        folder = Path(os.path.abspath(typed))  # noqa: PTH100, without following links, as Hydra does
        if check is not None:
            check(config, folder, typed)
        made = files.missing(folder)
        try:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"{given['job_dir_key']}={typed}: {error.strerror}: give another folder") from error
            return run_job(**given)
        finally:
            files.remove_empty(made)

    internal.run_job = in_checked_folder
    try:
        yield
    finally:
        internal.run_job = run_job
