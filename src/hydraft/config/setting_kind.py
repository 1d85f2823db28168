"""Whether a setting is text, a list of texts or a dict of texts, by its dotted name. No torch."""

import dataclasses
import types
import typing
from enum import Enum
from typing import Any

from hydraft.config.infer import InferConfig
from hydraft.config.schema import Config


class Kind(Enum):
    text = "text"
    texts = "a list of texts"
    mapping = "a dict of texts"
    any = "text, or a list or dict of texts"
    other = "no text"


def kind_of(name: str) -> Kind:
    """The kind of a setting of train.py or infer.py; ``other`` too for a section, a config group and an unknown name."""
    found = [_kind(_hint(schema, name.split("."))) for schema in (Config, InferConfig)]
    return next((kind for kind in found if kind is not Kind.other), Kind.other)


def is_list(name: str) -> bool:
    """Whether a setting is a list, of anything."""
    return any(typing.get_origin(_hint(schema, name.split("."))) is list for schema in (Config, InferConfig))


def is_optional(name: str) -> bool:
    """Whether a setting may be null."""
    parent, _, last = name.rpartition(".")
    for schema in (Config, InferConfig):
        section = _hint(schema, parent.split(".") if parent else [])
        hint = typing.get_type_hints(section).get(last) if dataclasses.is_dataclass(section) else None
        if type(None) in typing.get_args(hint):
            return True
    return False


def _hint(hint: Any, path: list[str]) -> Any:
    """The type of what is at ``path`` below a value of type ``hint``; None if nothing is."""
    hint = _without_none(hint)
    if not path:
        return hint
    first, *rest = path
    if dataclasses.is_dataclass(hint):
        return _hint(typing.get_type_hints(hint).get(first), rest)
    if typing.get_origin(hint) is dict:
        return _hint(typing.get_args(hint)[1], rest)
    if typing.get_origin(hint) is list and first.isdigit():
        return _hint(typing.get_args(hint)[0], rest)
    return None


def _kind(hint: Any) -> Kind:
    if hint is str:
        return Kind.text
    if hint is Any:
        return Kind.any
    inner = [_without_none(one) for one in typing.get_args(hint)]
    if typing.get_origin(hint) is list and inner == [str]:
        return Kind.texts
    if typing.get_origin(hint) is dict and inner == [str, str]:
        return Kind.mapping
    return Kind.other


def _without_none(hint: Any) -> Any:
    """``str`` for ``str | None``; other unions, such as ``int | str``, as they are."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else hint
    return hint
