"""The boundary to Hydra: composes the config of a command line and converts it to the schema. No torch.

An invalid config ends a command with one line and exit code 2, a failed run with 1, and a signal with 128 plus its number (130 for
Ctrl-C).
"""

import difflib
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from hydraft.config import help, reference
from hydraft.config.help import did_you_mean
from hydraft.config.infer import InferConfig
from hydraft.config.schema import Config
from hydraft.errors import EXIT_INTERRUPTED, EXIT_REFUSED, ConfigError, RunFailed, RunStopped
from hydraft.system.source_tree import ROOT

T = TypeVar("T")


def _schema(section: type[Any], open_dict: str) -> DictConfig:
    """A schema whose ``open_dict`` takes keys from the command line, which Hydra refuses by default."""
    schema = OmegaConf.structured(section)
    assert isinstance(schema, DictConfig)
    OmegaConf.set_struct(OmegaConf.select(schema, open_dict), False)
    return schema


ConfigStore.instance().store("train_schema", _schema(Config, "data.columns"))
ConfigStore.instance().store("infer_schema", _schema(InferConfig, "columns"))
OmegaConf.register_new_resolver("root", lambda: str(ROOT), replace=True)


def run(task: Callable[[DictConfig], Any], config_name: str) -> int:
    """Compose ``conf/<config_name>.yaml`` with the command line's overrides and call ``task`` (once a job, under ``-m``).

    Returns:
        The exit code: 0, 1 (failed), 2 (refused) or 128 + the signal that ended it (130 for Ctrl-C).
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are raised to here; Hydra prints none
    sys.argv[1:] = [quote(argument) for argument in sys.argv[1:]]
    caught: list[BaseException] = []

    def guarded(config: DictConfig) -> Any:
        try:
            return task(config)
        except (ConfigError, OmegaConfBaseException, RunFailed, KeyboardInterrupt) as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                raise
            caught.append(error)  # raised here, Hydra would print its own message
            return None
        finally:
            with suppress(OSError):  # Hydra created these; a refused run and a plan leave no folder
                output_folder().rmdir()
                output_folder().parent.rmdir()

    try:
        if help.requested(sys.argv[1:]):
            return help.print_help(config_name, sys.argv[1:])
        hydra.main(config_path=str(ROOT / "conf"), config_name=config_name, version_base="1.3")(guarded)()
        if caught:
            raise caught[0]
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        print(f"{Path(sys.argv[0]).name}: {explain(error)}", file=sys.stderr)
        return EXIT_REFUSED
    except RunFailed as error:
        print(error, file=sys.stderr)
        return error.code
    except RunStopped as error:
        print(error, file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has ended (… | head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def typed(config: DictConfig, schema: type[T]) -> T:
    """The composed config as an instance of ``schema``; an unknown key (``+model.typo=3``) is refused here.

    Raises:
        ConfigError: a setting is not in the schema, or one without a default has no value.
    """
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(f"{missing[0]}: needs a value; give {missing[0]}=…")
    plain = OmegaConf.to_container(config, resolve=True)
    value = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), plain))  # + may have added keys
    assert isinstance(value, schema)
    return value


def output_folder() -> Path:
    """The folder of this job's run, as Hydra chose it."""
    return Path(HydraConfig.get().runtime.output_dir)


def overrides() -> list[str]:
    """The overrides of this job's command line."""
    return list(HydraConfig.get().overrides.task)


def names(group: str) -> bool:
    """Whether the command line has an override of ``group``."""
    return any(re.match(rf"\W*{group}\b", override) for override in overrides())


def quote(argument: str) -> str:
    """Quote the value of ``key=value`` if Hydra's grammar cannot read it: Chinese, spaces, punctuation.

    The shell has removed the user's quotes. ``prompt=`` and ``system=`` are always text, and so are ``data.template=`` and
    ``template=``, including braces; in these two ``\\n`` is a line break, which is hard to type in a shell.
    """
    match = re.fullmatch(r"([+~]{0,2}[A-Za-z_][\w./@]*)=(.+)", argument, flags=re.DOTALL)
    if match is None or argument.startswith("-"):
        return argument
    key, value = match.groups()
    if key in ("data.template", "template"):
        value = value.replace("\\n", "\n")
        if value[0] in "'\"":
            return f"{key}={value}"
    elif key not in ("prompt", "system"):
        try:
            OverridesParser.create().parse_override(argument)
            return argument
        except HydraException:
            if value[0] in "[{'\"":
                return argument  # a list, a dict or a quoted string: Hydra reports the error
    # In Hydra's grammar a backslash escapes only before a quote, or at the end before the closing quote.
    escaped = re.sub(r"(\\*)'", lambda m: m.group(1) * 2 + "\\'", value)
    escaped = re.sub(r"(\\+)$", lambda m: m.group(1) * 2, escaped)
    return f"{key}='{escaped}'"


def explain(error: Exception) -> str:
    """One line that says what to change, for any error of a config."""
    if isinstance(error, ConfigError):
        return " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = error.missing_cfg_file.rpartition("/")
        options = sorted(error.options)
        meant = difflib.get_close_matches(choice, options, n=1, cutoff=0.5)
        hint = f"; did you mean {group}={meant[0]}?" if meant else ""
        return f"{group}={choice}: no such option{hint} (there are: {', '.join(options)})"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read ({str(error).splitlines()[0]})"
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, InterpolationKeyError) and (size := re.search(r"sizes\[(.*?)\]", str(cause))):
        return f"model.size={size[1]}: no such size (there are: {', '.join(cause.parent_node.sizes)})"
    key = getattr(cause, "full_key", None) or ""
    text = (getattr(cause, "msg", None) or str(cause)).strip().splitlines()[0]
    if key and text.startswith("Value '' "):
        return f"{key}=: is empty; give {key}=…"
    unknown = re.match(r"Key '([^']+)' (?:is )?not in '(\w+)'", text)
    group = re.match(r"Could not override '([^']+)'", str(error))
    if unknown or (group and "No match in the defaults list" in str(error)):
        name = (key or unknown.group(1)) if unknown else group.group(1) if group else ""
        return f"{name}: no such setting{did_you_mean(name, _known())}"
    return f"{key}: {text}" if key and key not in text else text


def _known() -> list[str]:
    """Every dotted name of both schemas, and those of the sections."""
    return list(dict.fromkeys(name for command in reference.SCHEMAS for name in reference.names(command)))


def exit_with(code: int) -> NoReturn:
    """End the process; the streams are flushed first."""
    sys.stdout.flush()
    sys.exit(code)
