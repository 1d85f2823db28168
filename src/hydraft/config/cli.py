"""The boundary to Hydra: composes the config of a command line and converts it to the schema. No torch.

An invalid config ends a command with one line and exit code 2, a failed run with 1, and a signal with 128 plus its number (130 for
Ctrl-C).
"""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from hydraft.config import (
    agent_form,
    composed_text,
    groups,
    help,
    job_folder,
    mistakes,
    moved,
    own_options,
    shipped,
    text,
    yaml_text,
)
from hydraft.config.earlier_schema import EarlierConfig
from hydraft.config.explain import explain as explain
from hydraft.config.infer import InferConfig
from hydraft.config.typed_text import quote as quote
from hydraft.errors import EXIT_INTERRUPTED, EXIT_REFUSED, ConfigError, RunFailed, RunStopped
from hydraft.system import files, limits, program, wrapping
from hydraft.system.redaction import redact_text
from hydraft.system.source_tree import ROOT, TINY

T = TypeVar("T")

MULTIRUN = ("-m", "--multirun")

NO_HOME = "Could not determine home directory."
"""The message of pathlib, Path.expanduser and Path.home."""


def _schema(section: type[Any], *open_dicts: str) -> DictConfig:
    """A schema whose ``open_dicts`` take keys from the command line, which Hydra refuses by default."""
    schema = OmegaConf.structured(section)
    assert isinstance(schema, DictConfig)
    for name in open_dicts:
        OmegaConf.set_struct(OmegaConf.select(schema, name), False)
    return schema


ConfigStore.instance().store(
    "train_schema", _schema(EarlierConfig, "data.columns", "lora.rank_pattern", "lora.alpha_pattern")
)
ConfigStore.instance().store("infer_schema", _schema(InferConfig, "columns"))
OmegaConf.register_new_resolver("root", lambda: str(ROOT), replace=True)
OmegaConf.register_new_resolver("tiny", lambda: str(TINY), replace=True)
OmegaConf.register_new_resolver(shipped.RESOLVER, shipped.with_shipped, replace=True)


def run(task: Callable[[DictConfig], Any], config_name: str, check: job_folder.Check | None = None) -> int:
    """Compose ``conf/<config_name>.yaml`` with the command line's overrides and call ``task`` (once a job, under ``-m``).

    Args:
        task: gets the composed config.
        config_name: ``train`` or ``infer``.
        check: refuses the folder of a single run before Hydra writes there.

    Returns:
        The exit code: 0, 1 (failed), 2 (refused) or 128 + the signal that ended it (130 for Ctrl-C).
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are raised to here; Hydra prints none
    caught: list[BaseException] = []

    def guarded(config: DictConfig) -> Any:
        try:
            refuse(HydraConfig.get())
            with _home():
                return task(config)
        except (ConfigError, OmegaConfBaseException, RunFailed, KeyboardInterrupt) as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise
            caught.append(error)  # raised here, Hydra would print its own message
            return None
        finally:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                files.remove_empty([output_folder()])  # Hydra created it; a plan leaves no folder

    try:
        limits.raise_open_files()
        own_options.refuse_foreign()
        sys.argv[1:] = [agent_form.plain(argument, config_name) for argument in sys.argv[1:]]
        sys.argv[1:] = moved.overrides(sys.argv[1:]) if config_name == "train" else sys.argv[1:]
        mistakes.refuse(sys.argv[1:], config_name)
        sys.argv[1:] = mistakes.flags_first(sys.argv[1:])
        sweep = bool(set(MULTIRUN) & set(sys.argv[1:])) or "hydra.mode=MULTIRUN" in sys.argv[1:]
        sys.argv[1:] = [quote(argument, sweep, commas=config_name == "infer") for argument in sys.argv[1:]]
        if help.requested(sys.argv[1:]):
            return help.print_help(config_name, sys.argv[1:])
        if (shown := composed_text.requested(sys.argv[1:])) is not None and not sweep:
            print(composed_text.text(config_name, *shown), end="")
            return 0
        own_options.report_replaced()
        with job_folder.checked(check):
            hydra.main(config_path=str(ROOT / "conf"), config_name=config_name, version_base="1.3")(guarded)()
        if caught:
            raise caught[0]
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        return _refused(error, config_name)
    except (RunFailed, RunStopped) as error:
        wrapping.say(redact_text(str(error)), sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:  # Hydra does not expect everything that can be typed
        if _has_begun(error):
            raise
        return _refused(error, config_name)
    return 0


def _refused(error: Exception, config_name: str) -> int:
    """Print what is wrong with the command line; returns the exit code."""
    wrapping.say(f"{program.name()}: {redact_text(explain(error, config_name, _typed()))}", sys.stderr)
    return EXIT_REFUSED


@contextmanager
def _home() -> Iterator[None]:
    """Refuse a path below a home folder that is not known, which pathlib reports as a RuntimeError, wherever it is first read.

    Raises:
        ConfigError: names the override, or the variable.
    """
    try:
        yield
    except RuntimeError as error:
        if str(error) != NO_HOME:
            raise
        named = next((one for one in _typed() if re.search(r"=[\['\"]*~", one)), None)
        raise ConfigError(
            f"{named}: there is no such home folder: give the whole path"
            if named
            else "HOME: is not set, and this user has no home folder: set it, such as HOME=/tmp/me"
        ) from error


def _typed() -> list[str]:
    return [argument for argument in sys.argv[1:] if "=" in argument]


def _has_begun(error: Exception) -> bool:
    """Whether a job or a sweep, and not the reading of the command line, raised ``error``."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [str(frame.f_globals.get("__name__")) for frame in frames]
    later = [name for name in names if re.match(r"hydraft\.(?!config\.)|hydra_plugins\.hydraft", name)]
    if names[-1] == Plugins.__module__:  # hydra.launcher._target_ is none of Hydra's plugins
        return False
    return bool(later) or any(frame.f_code.co_name == "guarded" for frame in frames)


def refuse(hydra_config: HydraConf) -> None:
    """Refuse overrides that would do nothing, and texts in YAML that would change.

    Args:
        hydra_config: Hydra's section of the composed config.

    Raises:
        ConfigError: names the override, or the file.
    """
    if hydra_config.mode is RunMode.RUN:
        mistakes.refuse_sweep(overrides(), bool(OmegaConf.select(hydra_config, "sweeper.params")))
    elif not str(OmegaConf.select(hydra_config, "sweeper._target_")).startswith("hydra_plugins.hydraft_"):
        mistakes.refuse_replicas(overrides(), "is for hydra/sweeper=grid and hydra/sweeper=search: use one of them")
    folders = [Path(source.path) for source in hydra_config.runtime.config_sources if source.schema == "file"]
    yaml_text.refuse_numbers(folders, hydra_config.runtime.choices)


def typed(config: DictConfig, schema: type[T]) -> T:
    """The composed config as an instance of ``schema``; an unknown key (``+model.typo=3``) is refused here.

    Raises:
        ConfigError: a setting is not in the schema, or one without a default has no value.
    """
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        missing = min(OmegaConf.missing_keys(config))
        raise ConfigError(f"{missing}: needs a value; give {missing}=…") from error
    assert isinstance(values, dict)
    return text.to_object(schema, moved.composed(values))  # + may have added keys


def output_folder() -> Path:
    """The folder of this job's run, as Hydra chose it."""
    return Path(HydraConfig.get().runtime.output_dir)


def overrides() -> list[str]:
    """The overrides of this job's command line."""
    return list(HydraConfig.get().overrides.task)


def local_settings() -> list[str]:
    """A line about the file of this machine in ``conf/local/`` that the config was composed with; none without one."""
    chosen, sources = HydraConfig.get().runtime.choices.get(groups.LOCAL), HydraConfig.get().runtime.config_sources
    for source in sources:
        file = Path(source.path) / groups.LOCAL / f"{chosen}.yaml"
        if chosen and source.schema == "file" and file.is_file():
            found = ", ".join(groups.settings_of(file, f"{groups.LOCAL}.")) or "options of groups"
            return [f"{file.relative_to(file.parents[2])} sets {found}"]
    return []


def names(group: str) -> bool:
    """Whether the command line has an override of ``group``."""
    return any(re.match(rf"\W*{group}\b", override) for override in overrides())


def params(config: Mapping[str, Any] | None) -> list[str]:
    """The overrides of ``hydra.sweeper.params``."""
    return [quote(moved.override(f"{key}={value}"), sweep=True) for key, value in (config or {}).items()]


def exit_with(code: int) -> NoReturn:
    """End the process; the streams are flushed first."""
    sys.stdout.flush()
    sys.exit(code)
