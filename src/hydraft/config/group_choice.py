"""The option of a config group on the command line, checked before Hydra sees it. No torch.

Hydra fails with a traceback on an option that is a number, null or no file name, and names no override where a list has an unknown option.
"""

import dataclasses
import difflib
import re

from hydraft.config import groups, reference
from hydraft.config.other_names import option
from hydraft.config.split_text import INTERVALS, choices, inside, split, unquoted
from hydraft.errors import ConfigError

WORD = re.compile(r"[\w.+-][\w./+-]*")
"""An option may be in a folder of the group."""

SECTIONS = {command: [one.name for one in dataclasses.fields(schema)] for command, schema in reference.SCHEMAS.items()}
"""Settings of each command; a group that is none of them, such as experiment, takes no settings of its own."""

LONGEST = 100
"""Characters of a file name in conf/, and far fewer than a file system takes."""


def refuse(argument: str, command: str, others: bool = False) -> None:
    """Refuse an override of a group with an option that there is not.

    Args:
        argument: as typed.
        command: ``train`` or ``infer``.
        others: whether the command line adds folders with options (``--config-dir``).

    Raises:
        ConfigError: says which options there are.
    """
    key, _, typed = argument.partition("=")
    group = key.strip().lstrip("+").partition("@")[0]
    options = groups.groups().get(group)
    if options is None or key.startswith("~") or group not in groups.defaults(command):
        return
    default, there = groups.defaults(command)[group], ", ".join(options)
    if inside(typed, "{}") is not None and group in SECTIONS[command]:
        if not typed.strip("{} "):
            raise ConfigError(f"{argument}: is empty: leave it out, or give an option (there are: {there})")
        return  # settings of the section, which Hydra and OmegaConf check
    if INTERVALS.fullmatch(typed):
        if not typed.lstrip().startswith("glob"):
            raise ConfigError(f"{argument}: an option is no number (there are: {there})")
        return
    every = choices(typed)
    for one in every:
        elements = split(listed) if (listed := inside(one, "[]")) is not None else [one]
        for element in elements:
            name = unquoted(element) if unquoted(element) is not None else element.strip()
            if _is_option(group, str(name), others) or (name == "null" and default is None):
                continue
            raise ConfigError(_no_option(argument, group, str(name), whole=len(elements) == len(every) == 1))


def _is_option(group: str, name: str, others: bool) -> bool:
    if WORD.fullmatch(name) is None or len(name) > LONGEST or ".." in name:
        return False
    return others or name in groups.groups()[group] or groups.file_of(group, name).is_file()


def _no_option(argument: str, group: str, name: str, whole: bool) -> str:
    """The refusal, with what the option was meant as."""
    options = groups.groups()[group]
    shown = argument if whole else f"{argument}: {group}={name}"
    if not name:
        return f"{argument}: is empty: leave it out, or give an option (there are: {', '.join(options)})"
    near = difflib.get_close_matches(name.lower(), options, n=1, cutoff=0.5)
    near = near or [one for one in options if len(name) > 1 and one.startswith(name.lower())]
    meant = option(group, name) or (f"{group}={near[0]}" if near else None)
    hint = f"; did you mean {meant}?" if meant else ""
    return f"{shown}: no such option{hint} (there are: {', '.join(options)})"
