"""Config groups: the options below ``conf/``, their first comment lines and the values that they set. No torch."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from hydraft.config.shipped import RESOLVER
from hydraft.system.source_tree import ROOT

CONF = ROOT / "conf"
GLOBAL = "# @package _global_"
LOCAL = "local"
"""The group whose files are those of this machine, and of nobody else: each command takes one if it is there."""


def groups() -> dict[str, list[str]]:
    """The options of every group, both sorted by name."""
    folders = sorted(folder for folder in CONF.iterdir() if folder.is_dir() and folder.name not in ("hydra", LOCAL))
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def file_of(group: str, option: str) -> Path:
    """The file of an option."""
    return CONF / group / f"{option}.yaml"


def summary(group: str, option: str) -> str:
    """The first comment line of an option's file."""
    lines = file_of(group, option).read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix("# ") for line in lines if line.startswith("# ") and line != GLOBAL)


@cache
def values(group: str, option: str) -> Mapping[str, Any]:
    """The settings that an option's file sets itself, by their dotted names; interpolations as they are written."""
    return settings_of(file_of(group, option), f"{group}.")


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


@cache
def defaults(command: str) -> Mapping[str, str | None]:
    """The option that ``conf/<command>.yaml`` takes of each group; None for a group that it takes none of."""
    chosen: dict[str, str | None] = {}
    composed: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{command}.yaml"), resolve=False)
    for entry in composed["defaults"]:
        if isinstance(entry, dict):
            ((group, option),) = entry.items()
            if not group.startswith(("override ", "optional ")):
                chosen[group] = option
    return chosen
