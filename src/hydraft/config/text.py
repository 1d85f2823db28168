"""Text in OmegaConf's configs: a value such as ``${price}`` or ``???`` that is text, not an interpolation or a missing value. No torch.

OmegaConf reads a meaning into the text of every node. What is text is escaped before it becomes a node, and OmegaConf's own reading
of the node gives the text back.
"""

import dataclasses
import enum
import functools
import pickle
import re
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")

MISSING = "???"
MISSING_AS_TEXT = "${oc.decode:???}"
"""An interpolation whose value is the text ``???``."""

_MARKED = "???\0"
"""``???`` in a structured config: converted to an object, that refuses any node whose value is ``???``. No command line has a NUL."""


def escaped(value: Any) -> Any:
    """``value`` so that a node with it has ``value`` itself as its value; for text, and the text in lists, dicts and dataclasses."""
    return _escaped(value, MISSING_AS_TEXT)


def _escaped(value: Any, missing: str) -> Any:
    if isinstance(value, str):
        # In OmegaConf's grammar a backslash escapes only before "${" (grammar/OmegaConfGrammarLexer.g4).
        return missing if value == MISSING else re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, (list, tuple)):
        return [_escaped(item, missing) for item in value]
    if isinstance(value, dict):
        return {key: _escaped(item, missing) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
        changed = {name: _escaped(item, missing) for name, item in fields.items()}
        return dataclasses.replace(value, **{name: item for name, item in changed.items() if item != fields[name]})
    return value


def plain(value: Any, kind: Any = None) -> Any:
    """The dicts, lists and scalars of a structured config of ``value``, escaped; several times as fast as OmegaConf makes them.

    Args:
        value: a dataclass or what one of its fields holds.
        kind: the type of that field. A whole number in one of floats is a float.
    """
    if dataclasses.is_dataclass(value):
        return {one.name: plain(getattr(value, one.name), one.type) for one in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (list, tuple)):
        return [plain(item, kind) for item in value]
    if isinstance(value, dict):
        return {key: plain(item, kind) for key, item in value.items()}
    return float(value) if type(value) is int and _of_floats(kind) else _escaped(value, MISSING_AS_TEXT)


@functools.cache
def _of_floats(kind: Any) -> bool:
    return "float" in repr(kind)


@functools.cache
def _structured(schema: type[Any]) -> DictConfig:
    found = OmegaConf.structured(schema)
    assert isinstance(found, DictConfig)
    return found


def original(text: str) -> str:
    """The text of which ``escaped`` made ``text``."""
    if text == MISSING_AS_TEXT:
        return MISSING
    return re.sub(r"(\\+)(?=\$\{)", lambda found: found[1][: len(found[1]) // 2], text)


def to_object(schema: type[T], plain: Any) -> T:
    """An instance of ``schema`` from ``plain`` values, whose texts are taken as they are.

    Raises:
        OmegaConfBaseException: a key is not in the schema, or a value does not have its type.
    """
    sections = _sections(schema)
    if not sections or not isinstance(plain, dict) or sections.keys() - plain.keys():
        return _converted(schema, plain)
    rest = schema, pickle.dumps({key: value for key, value in plain.items() if key not in sections})
    if rest not in _rests:
        whole = _converted(schema, plain)
        _rests[rest] = {key: value for key, value in vars(whole).items() if key not in sections}
        return whole
    try:
        found = {key: pickle.loads(_pickled(kind, pickle.dumps(plain[key]))) for key, kind in sections.items()}
    except (OmegaConfBaseException, ValueError):
        return _converted(schema, plain)  # its error has the whole name of the setting
    return schema(**_rests[rest], **found)


def _sections(schema: Any) -> dict[str, Any]:
    """The fields of a dataclass that are dataclasses themselves, with their types."""
    return {one.name: one.type for one in dataclasses.fields(schema) if dataclasses.is_dataclass(one.type)}


_rests: dict[tuple[Any, bytes], dict[str, Any]] = {}
"""Of a schema, the values that are in none of its sections."""


@functools.lru_cache(maxsize=1000)
def _pickled(schema: Any, plain: bytes) -> bytes:
    """An object of pickled values. Conversion takes long, and the jobs of a sweep differ in few sections."""
    return pickle.dumps(_converted(schema, pickle.loads(plain)))


def _converted(schema: type[T], plain: Any) -> T:
    merged = OmegaConf.merge(_structured(schema), _escaped(plain, _MARKED))  # type: ignore[arg-type]
    found = _unmarked(OmegaConf.to_object(merged))
    assert isinstance(found, schema)
    return found


def _unmarked(value: Any) -> Any:
    """``value`` with ``???`` where ``to_object`` has marked it; dataclasses are changed in place."""
    if isinstance(value, str):
        return MISSING if value == _MARKED else value
    if isinstance(value, list):
        return [_unmarked(item) for item in value]
    if isinstance(value, dict):
        return {key: _unmarked(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for one in dataclasses.fields(value):
            before = getattr(value, one.name)
            after = _unmarked(before)
            if after is not before and after != before:
                setattr(value, one.name, after)
    return value
