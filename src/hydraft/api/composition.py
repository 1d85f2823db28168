"""Composes configs in Python as train.py and infer.py compose those of a command line. Hydra's own state stays as it was. No torch."""

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from hydraft.config import cli, mistakes, moved, own_options, rules, yaml_text
from hydraft.config.choices import Mode
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.runs import start
from hydraft.system.redaction import redact_text

T = TypeVar("T")

VERSION_BASE = "1.3"
"""As in ``cli.run``."""

OF_THE_COMMAND = re.compile(r"[+~]*hydra(\.|/|@|=|$)")
"""Overrides of Hydra's own settings, which are no part of a run's config."""

_lock = threading.Lock()


def compose(*overrides: str) -> Config:
    """The config of a run: ``compose("model=tiny", "lora.r=16")`` is that of ``python train.py model=tiny lora.r=16``.

    Args:
        overrides: as on the command line, without the quotes of a shell.

    Returns:
        The config, whose settings may be changed. What needs the machine or the records is decided and checked by ``plan`` and ``train``.

    Raises:
        ConfigError: an override is wrong, or the settings do not go together.
    """
    for override in overrides:
        _refuse(override)
    composed = composed_of(overrides, "train")
    with explained("train", overrides):
        mistakes.refuse_sweep(overrides, bool(OmegaConf.select(composed, "hydra.sweeper.params")))
        _refuse_numbers(composed)
        config = without_hydra(composed, Config)
        config, _ = start.settled(config, overrides)
        rules.check(replace(config, mode=Mode.plan), None)
    return config


def _refuse(override: str) -> None:
    """Refuse an override that a config cannot hold.

    Raises:
        ConfigError: says where it belongs.
    """
    if not isinstance(override, str):
        raise ConfigError(f"{override!r}: an override is a text, such as 'lora.r=16'")
    if override in ("-m", "--multirun"):
        raise ConfigError(f"{override}: several values are a sweep: hydraft.sweep('lora.r=4,8')")
    if override.startswith("-"):
        raise ConfigError(f"{override}: is a flag of the command line: leave it out")
    key = override.partition("=")[0]
    if key in ("hydra.run.dir", "+hydra.run.dir"):
        raise ConfigError(f"{override}: is no part of a config: hydraft.train(config, folder=…)")
    if OF_THE_COMMAND.match(override) and not key.endswith("searchpath"):
        raise ConfigError(f"{override}: is a setting of the command line, and no part of a config: leave it out")
    if key == "resume":
        raise ConfigError(f"{override}: a run is resumed with hydraft.Run('{override.partition('=')[2]}').resume()")
    if key.startswith("sweep."):
        raise ConfigError(f"{override}: is for a sweep: hydraft.sweep(…, '{override}')")


def composed_of(overrides: Sequence[str], command: str, sweep: bool = False) -> DictConfig:
    """What Hydra composes from ``overrides``, its own section included.

    Args:
        overrides: as typed.
        command: ``train`` or ``infer``.
        sweep: whether several values are a sweep.

    Raises:
        ConfigError: an override is wrong.
    """
    with explained(command, overrides):
        overrides = moved.overrides(overrides) if command == "train" else overrides
        mistakes.refuse(overrides, command)
        quoted = [cli.quote(override, sweep, commas=command == "infer") for override in overrides]
        return _loaded(quoted, command, RunMode.MULTIRUN if sweep else RunMode.RUN)


def _loaded(overrides: list[str], command: str, mode: RunMode) -> DictConfig:
    """The config of overrides in Hydra's grammar."""
    with _lock, _version_base():
        setup_globals()
        loader = ConfigLoaderImpl(config_search_path=create_config_search_path(str(own_options.CONF)))
        named = [*overrides, f"hydra.job.name={command}"]  # of a command, it is the script's
        composed: DictConfig = loader.load_configuration(command, named, mode)
    with open_dict(composed.hydra):
        composed.hydra.overrides.hydra.remove(named[-1])
    return composed


@contextmanager
def _version_base() -> Iterator[None]:
    """Compose as the commands do, also within another program that uses Hydra."""
    known = version.VersionBase.instance()
    before = known.version_base
    version.setbase(VERSION_BASE)
    try:
        yield
    finally:
        known.version_base = before


def _refuse_numbers(composed: DictConfig) -> None:
    """Refuse texts in YAML that would change.

    Raises:
        ConfigError: names the file.
    """
    runtime = composed.hydra.runtime
    folders = [Path(source.path) for source in runtime.config_sources if source.schema == "file"]
    yaml_text.refuse_numbers(folders, runtime.choices)


def without_hydra(composed: DictConfig, schema: type[T]) -> T:
    """The composed config as an instance of ``schema``.

    Raises:
        ConfigError: a setting is not in the schema, or one without a default has no value.
    """
    values = composed.copy()
    with open_dict(values):
        del values["hydra"]
    return cli.typed(values, schema)


@contextmanager
def explained(command: str, overrides: Sequence[str]) -> Iterator[None]:
    """Within the block, an error of Hydra, OmegaConf or a config is a ``ConfigError`` of one line, as the command prints it."""
    try:
        yield
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        typed = [override for override in overrides if "=" in override]
        line = redact_text(cli.explain(error, command, typed))
        raise ConfigError(line.replace(": add -m", ": use hydraft.sweep")) from None


def new_folder(overrides: Sequence[str] = (), sweep: bool = False) -> Path:
    """A folder for a new run, or for a new sweep, where the command would make it: ``outputs/<date>/<time>``."""
    composed = composed_of(overrides, "train", sweep)
    chosen: Any = composed.hydra.sweep if sweep else composed.hydra.run
    written = str(OmegaConf.to_container(chosen, resolve=False)["dir"])  # type: ignore[index, call-overload]
    moment = datetime.now()
    return Path(re.sub(r"\$\{now:([^}]*)\}", lambda found: moment.strftime(found[1]), written)).absolute()
