"""Config groups: the options below ``conf/``, their first comment lines and the values that they set. No torch.

Those of a user are in ``conf/`` of the current folder, and come before the shipped ones (``own_options.py``).
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from hydraft.config.own_options import CONF, folders
from hydraft.config.shipped import RESOLVER

GLOBAL = "# @package _global_"
LOCAL = "local"
"""The group whose files are those of this machine, and of nobody else: each command takes one if it is there."""


def groups() -> dict[str, list[str]]:
    """The options of every group, both sorted by name."""
    found: dict[str, set[str]] = {}
    for folder in (inner for conf in folders() for inner in conf.iterdir() if inner.is_dir()):
        if folder.name not in ("hydra", LOCAL) and (options := {file.stem for file in folder.glob("*.yaml")}):
            found[folder.name] = found.get(folder.name, set()) | options
    return {name: sorted(options) for name, options in sorted(found.items())}


def file_of(group: str, option: str) -> Path:
    """The file of an option."""
    return _first(Path(group, f"{option}.yaml"))


def _first(name: Path) -> Path:
    """The file that Hydra finds: a user's own one before a shipped one."""
    return next((conf / name for conf in folders() if (conf / name).is_file()), CONF / name)


def summary(group: str, option: str) -> str:
    """The first comment line of an option's file."""
    lines = file_of(group, option).read_text(encoding="utf-8").splitlines()
    return next((line.removeprefix("# ") for line in lines if line.startswith("# ") and line != GLOBAL), "")


def values(group: str, option: str) -> Mapping[str, Any]:
    """The settings that an option's file sets itself, by their dotted names; interpolations as they are written."""
    return settings_of(file_of(group, option), f"{group}.")


@cache
def settings_of(file: Path, package: str) -> Mapping[str, Any]:
    """The settings of a file by their dotted names; ``package`` is before each, unless the file is for the whole config."""
    prefix = "" if file.read_text(encoding="utf-8").startswith(GLOBAL) else package
    found: dict[str, Any] = {}

    def walk(node: Any, name: str) -> None:
        if isinstance(node, dict) and (node or not name):
            for key, value in node.items():
                walk(value, f"{name}.{key}" if name else str(key))
        else:
            found[f"{prefix}{name}"] = _plain(node)

    plain = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    assert isinstance(plain, dict)
    walk({key: value for key, value in plain.items() if key not in ("defaults", "hydra")}, "")
    return found


def _plain(value: Any) -> Any:
    """``256`` of ``${with_shipped:256}``; other values as they are."""
    match = re.fullmatch(r"\$\{" + RESOLVER + r":(.*)\}", value) if isinstance(value, str) else None
    return value if match is None else yaml.safe_load(match[1])


def defaults(command: str) -> Mapping[str, str | None]:
    """The option that ``conf/<command>.yaml`` takes of each group; None for a group that it takes none of."""
    return _defaults(_first(Path(f"{command}.yaml")))


@cache
def _defaults(file: Path) -> Mapping[str, str | None]:
    chosen: dict[str, str | None] = {}
    composed: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    for entry in composed["defaults"]:
        if isinstance(entry, dict):
            ((group, option),) = entry.items()
            if not group.startswith(("override ", "optional ")):
                chosen[group] = option
    return chosen
