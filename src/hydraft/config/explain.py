"""One line that says what to change, for any error of a config. No torch."""

import difflib
import re
from collections.abc import Callable

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import InterpolationKeyError

from hydraft.config.help import did_you_mean
from hydraft.config.setting_kind import is_list
from hydraft.errors import ConfigError


def explain(error: Exception, command: str = "train") -> str:
    """One line that says what to change.

    Args:
        error: of the command line, of Hydra or of OmegaConf.
        command: the script without its suffix, whose settings it is about.
    """
    if isinstance(error, ConfigError):
        return " ".join(str(error).split())
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        return _no_option(error.missing_cfg_file, error.options)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read ({str(error).splitlines()[0]})"
    for pattern, describe in MESSAGES:
        if found := re.search(pattern, str(error)):
            return describe(found)
    return _of_setting(error, command)


def _no_option(name: str, options: list[str]) -> str:
    group, _, choice = name.rpartition("/")
    meant = difflib.get_close_matches(choice, options, n=1, cutoff=0.5)
    hint = f"; did you mean {group}={meant[0]}?" if meant else ""
    return f"{group}={choice}: no such option{hint} (there are: {', '.join(sorted(options))})"


def _several(found: re.Match[str]) -> str:
    key, _, values = found[1].partition("=")
    if is_list(key.lstrip("+")) and "(" not in values:
        return f"{found[1]}: a list is in brackets: '{key}=[{values}]'"
    return f"{found[1]}: several values are a sweep: add -m"


MESSAGES: list[tuple[str, Callable[[re.Match[str]], str]]] = [
    (r"^Ambiguous value for argument '(.*)'", _several),
    (r"^Sweep parameters '(.*)' requires --multirun", _several),
]
"""Messages of Hydra that say more, or something else, than what to change here."""


def _of_setting(error: Exception, command: str) -> str:
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
        return f"{name}: no such setting{did_you_mean(name, command)}"
    return f"{key}: {text}" if key and key not in text else text
