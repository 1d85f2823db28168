"""Settings that have moved to another section: their earlier names are understood in this version, with a notice. No torch."""

import re
import sys
from collections.abc import Sequence
from typing import Any

from hydraft.config.optimizer import OptimizerConfig
from hydraft.system import wrapping

MOVED = {f"train.{name}": f"optimizer.{name}" for name in ("weight_decay", "betas", "eps")}
"""By earlier name: the present one."""

OVERRIDE = re.compile(rf"(\W*)({'|'.join(map(re.escape, MOVED))})(?==)")

_noticed: set[str] = set()


def override(argument: str, say: bool = True) -> str:
    """``argument`` with the present name of its setting."""
    match = OVERRIDE.match(argument)
    if match is None:
        return argument
    now = MOVED[match[2]]
    if say:
        notice(match[2], f"notice: {match[2]} is now {now}")
    return f"{match[1]}{now}{argument[match.end() :]}"


def overrides(arguments: Sequence[str], say: bool = True) -> list[str]:
    """``override`` of each."""
    return [override(argument, say) for argument in arguments]


def name(setting: str) -> str:
    """The present name of a setting."""
    return MOVED.get(setting, setting)


def composed(values: dict[Any, Any]) -> dict[str, Any]:
    """The composed values without the earlier names. A file's value counts where the present name has its default."""
    return _changed(values, say=True)


def read(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a saved config, which an earlier version may have written."""
    return _changed(values, say=False)


def _changed(values: dict[str, Any], say: bool) -> dict[str, Any]:
    train = values.get("train")
    if not isinstance(train, dict):
        return values
    values = {**values, "train": {key: value for key, value in train.items() if f"train.{key}" not in MOVED}}
    default = OptimizerConfig()
    for before, now in MOVED.items():
        key = before.partition(".")[2]
        if train.get(key) is None:
            continue
        section = values.get("optimizer") or {}
        counts = section.get(key, getattr(default, key)) == getattr(default, key)
        if counts:
            values["optimizer"] = {**section, key: train[key]}
        if say and (counts or section[key] != train[key]):
            also = "" if counts else f", whose value {section[key]} counts"
            notice(before, f"notice: {before} in a file of conf/ is now {now}{also}")
    return values


def earlier(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a saved config as earlier versions wrote them, if it has nothing that they did not have."""
    section = values.get("optimizer", {})
    if {f"optimizer.{key}" for key in section} != set(MOVED.values()):
        return values
    train: dict[str, Any] = {}
    for key, value in values["train"].items():
        train[key] = value
        if key == "warmup_ratio":
            train |= {before.partition(".")[2]: section[before.partition(".")[2]] for before in MOVED}
    return {key: value if key != "train" else train for key, value in values.items() if key != "optimizer"}


def notice(about: str, line: str) -> None:
    """Print a line once."""
    if about not in _noticed:
        _noticed.add(about)
        wrapping.say(line, sys.stderr)
