"""One line that says what to change, for any error of a config. No torch."""

import difflib
import itertools
import re
from collections.abc import Callable, Sequence

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError, OmegaConfBaseException

from hydraft.config.help import did_you_mean
from hydraft.config.own_options import CONF
from hydraft.config.setting_kind import is_list
from hydraft.errors import ConfigError
from hydraft.system.escaping import escaped

LONGEST = 300
"""Characters of a word in a message; the middle of a longer one is left out."""


def explain(error: Exception, command: str = "train", typed: Sequence[str] = ()) -> str:
    """One line that says what to change.

    Args:
        error: of the command line, of Hydra or of OmegaConf.
        command: the script without its suffix, whose settings it is about.
        typed: the overrides, one of which an error may be about that does not name it.
    """
    if not isinstance(error, (ConfigError, HydraException, OmegaConfBaseException)):
        return one_line(_unexpected(error, command, typed))
    text = _explained(error, command)
    if isinstance(error, InterpolationResolutionError):  # it does not know where the interpolation is
        text = next((f"{one}: {text}" for one in typed if "${" in one), text)
    return one_line(text)


def one_line(text: str) -> str:
    """``text`` on one line, without characters that a terminal would act on, and without the middle of very long words."""
    words = [escaped(word) for word in text.split()]
    half = LONGEST // 2
    return " ".join(word if len(word) <= LONGEST else f"{word[:half]}…{word[-half:]}" for word in words)


def _unexpected(error: Exception, command: str, typed: Sequence[str]) -> str:
    reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".removesuffix(": ")
    for override in typed:
        if not _composes(override, command):
            return f"{override}: cannot be read ({reason})"
    return f"{' '.join(typed)}: cannot be read ({reason})"


def _composes(override: str, command: str) -> bool:
    """Whether Hydra can compose a config with one override alone, or refuses it in words."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            compose(command, [override])
    except (HydraException, OmegaConfBaseException):
        return True
    except Exception:
        return False
    return True


def _explained(error: Exception, command: str) -> str:
    if isinstance(error, ConfigError):
        return str(error)
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
    keys = [getattr(cause, "full_key", None)]
    while cause.__cause__ is not None:
        cause = cause.__cause__
        keys.append(getattr(cause, "full_key", None))
    if isinstance(cause, InterpolationKeyError) and (size := re.search(r"sizes\[(.*?)\]", str(cause))):
        return f"model.size={size[1]}: no such size (there are: {', '.join(cause.parent_node.sizes)})"
    key = next(filter(None, reversed(keys)), "")
    lines = (getattr(cause, "msg", None) or str(cause)).strip().splitlines() or [type(cause).__name__]
    following = itertools.takewhile(lambda line: line.strip() and not line.startswith(("    ", "See ")), lines[1:])
    text = lines[0] if key else " ".join([lines[0], *following])
    if key and text.startswith("Value '' "):
        return f"{key}=: is empty; give {key}=…"
    unknown = re.match(r"Key '([^']+)' (?:is )?not in '(\w+)'", text)
    group = re.match(r"Could not override '([^']+)'", str(error))
    if unknown or (group and "No match in the defaults list" in str(error)):
        name = (key or unknown.group(1)) if unknown else group.group(1) if group else ""
        return f"{name}: no such setting{did_you_mean(name, command)}"
    return f"{key}: {text}" if key and key not in text else text
