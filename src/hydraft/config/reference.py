"""Every setting with its type, default, unit, bounds and meaning, read from the schema. No torch.

``hydraft settings`` prints them as docs/configuration.md, ``hydraft settings zh`` as docs/zh/configuration.md, whose texts are in
docs/zh/settings.yaml.
"""

import ast
import dataclasses
import importlib
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from hydraft.config import groups
from hydraft.config.bounds import bounds_of
from hydraft.config.infer import InferConfig
from hydraft.config.schema import Config

SCHEMAS: dict[str, type] = {"train": Config, "infer": InferConfig}
"""By command: the root of its schema."""

PLUGINS = {
    "hydra.launcher": ("hydra_plugins.hydraft_pool.launcher", "PoolConf"),
    "hydra.sweeper": ("hydra_plugins.hydraft_search.search", "SearchConf"),
}
"""By section of Hydra's config: module and schema of the plugin whose settings it has in a sweep. They are imported when they are read,
since they import what is to the right of this package."""

REQUIRED = "required"
PLAIN = {str: "str", int: "int", float: "float", bool: "bool", type(None): "null", Any: "str, list or dict"}


@dataclass(frozen=True)
class Setting:
    """One setting."""

    name: str
    """With dots: ``train.loss_spike``."""
    type: str
    default: str
    """As typed on the command line; ``required`` without a default."""
    unit: str
    """Empty for a value without one."""
    choices: tuple[str, ...]
    """The values of an enumeration."""
    bounds: str
    """In words; empty without bounds."""
    symbols: str
    """The bounds in mathematical notation."""
    meaning: str

    @property
    def allowed(self) -> str:
        """Choices or bounds, in Markdown."""
        return ", ".join(f"`{choice}`" for choice in self.choices) or self.symbols


@dataclass(frozen=True)
class Section:
    """A section of a schema and the settings directly in it."""

    name: str
    """With dots; empty for the root."""
    meaning: str
    settings: tuple[Setting, ...]


def sections(command: str) -> list[Section]:
    """The sections of a command's schema in its order, each before those inside it."""
    found = list(_sections(SCHEMAS[command], ""))
    if command == "train":
        for name, (module, schema) in PLUGINS.items():
            found += _sections(getattr(importlib.import_module(module), schema), name)
    return found


def names(command: str) -> list[str]:
    """The dotted names of a command's sections and settings."""
    found = [name for section in sections(command) for name in (section.name, *(one.name for one in section.settings))]
    return [name for name in dict.fromkeys(found) if name]


def _sections(schema: type, name: str) -> Iterator[Section]:
    prefix = f"{name}." if name else ""
    meanings, hints = _docstrings(schema), typing.get_type_hints(schema)
    found: list[Setting] = []
    inner: list[tuple[type, str]] = []
    for declared in dataclasses.fields(schema):
        if declared.name == "_target_":  # Hydra's, no setting
            continue
        hint, full = hints[declared.name], f"{prefix}{declared.name}"
        if dataclasses.is_dataclass(hint):
            inner.append((typing.cast(type, hint), full))
            continue
        if typing.get_origin(hint) is dict and dataclasses.is_dataclass(entry := typing.get_args(hint)[1]):
            inner.append((typing.cast(type, entry), f"{full}.<name>"))
        found.append(_setting(declared, full, hint, meanings.get(declared.name, "")))
    yield Section(name, " ".join((schema.__doc__ or "").split()), tuple(found))
    for section, full in inner:
        yield from _sections(section, full)


def _setting(declared: "dataclasses.Field[Any]", name: str, hint: Any, meaning: str) -> Setting:
    bounds = bounds_of(declared)
    default = declared.default if declared.default_factory is dataclasses.MISSING else declared.default_factory()
    choices = tuple(str(one.value) for kind in _alternatives(hint) if _is_enum(kind) for one in kind)
    return Setting(
        name, type_name(hint), shown(default), bounds.unit or "", choices, bounds.text, bounds.symbols, meaning
    )


def shown(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value == MISSING:
        return REQUIRED
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if _is_plain(value) else str(value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def type_name(hint: Any) -> str:
    """A type in words: ``int or null``, ``list of str``."""
    names = []
    for kind in _alternatives(hint):
        if typing.get_origin(kind) is list:
            names.append(f"list of {type_name(typing.get_args(kind)[0])}")
        elif typing.get_origin(kind) is dict:
            names.append("dict")
        else:
            names.append("choice" if _is_enum(kind) else PLAIN[kind])
    return " or ".join(names)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


@cache
def _classes(file: str) -> dict[str, dict[str, str]]:
    """By class and field of a source file: the string below the field."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            texts = found.setdefault(node.name, {})
            for field, below in zip(node.body, node.body[1:], strict=False):
                match field, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        texts[name] = " ".join(text.split())
    return found


def _docstrings(schema: type) -> dict[str, str]:
    file = sys.modules[schema.__module__].__file__
    assert file is not None
    return _classes(file).get(schema.__name__, {})


def option_defaults(command: str) -> dict[str, tuple[str, str]]:
    """By setting: the value and the option of each default group of a command that differs from the schema's default."""
    schema = {setting.name: setting.default for section in sections(command) for setting in section.settings}
    found: dict[str, tuple[str, str]] = {}
    for group, option in groups.defaults(command).items():
        if option is not None:
            for name, value in groups.values(group, option).items():
                text = shown(value)
                if name in schema and schema[name] != text:
                    found[name] = (
                        text.replace("${root:}/", "").replace("${tiny:}", "src/hydraft/models/tiny"),
                        f"{group}={option}",
                    )
    return found
