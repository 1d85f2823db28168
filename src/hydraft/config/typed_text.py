"""Overrides of settings whose type is text: what was typed becomes Hydra's quoted text, so that it arrives as it was typed. No torch.

Hydra's grammar reads ``1e3``, ``007`` and ``2024_10_05`` as numbers, and OmegaConf reads ``${price}`` as an interpolation and ``???`` as
a missing value. A value in Hydra's quotes, ``null``, a list, a dict and, in a sweep, the choices keep their meaning.
"""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from hydraft.config import groups
from hydraft.config.setting_kind import Kind, kind_of
from hydraft.config.split_text import CHOICES, INTERVALS, choices, inside, split
from hydraft.config.text import MISSING, MISSING_AS_TEXT, escaped
from hydraft.errors import ConfigError
from hydraft.system import files

OVERRIDE = re.compile(r"([+~]{0,2}([A-Za-z_][\w./@$-]*))=(.+)", re.DOTALL)

JOB_FOLDER = re.compile(r"(?:[^,]*/)?[\w.-]+=[^,'\"]*(?:,[\w.-]+=[^,'\"]*)+")
"""A path whose last part is named by ``sweep/folder_names.py``, with what may be in that folder."""

VERBATIM = ("prompt", "system")
"""Settings whose value is text in any case, also in quotes and with commas."""

TEMPLATES = ("data.template", "template")
"""The same, except for quotes around all of it; ``\\n`` is a line break, which is hard to type in a shell."""

HYDRA_PATHS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.name")
"""Texts of Hydra's own config. They may interpolate, as in ``hydra.run.dir=runs/${now:%Y}``."""

HYDRA_PARAMS = "hydra.sweeper.params"
"""A dict of overrides, whose values are text until they are read as overrides."""

ESCAPED = re.compile(r"[\\()\[\]{}:=, \t]")
"""Characters before which Hydra puts a backslash in the overrides of a sweep's jobs (hydra/_internal/grammar/utils.py, _ESC)."""

_UNREADABLE = object()


def quote(argument: str, sweep: bool = False, commas: bool = False) -> str:
    """An override in a form that Hydra reads as it was meant; the shell has removed the user's quotes.

    Args:
        argument: an argument of the command line.
        sweep: whether several values are a sweep (``-m``).
        commas: whether, without a sweep, a comma in a text is text (infer.py); otherwise the message says what to type.

    Raises:
        ConfigError: several values without a sweep, or a list without brackets.
    """
    match = OVERRIDE.fullmatch(argument)
    if match is None:
        return argument
    key, name, text = match.groups()
    if name in TEMPLATES:
        return f"{key}={_template(text.replace(chr(92) + 'n', chr(10)), sweep)}"
    if name in VERBATIM:
        return f"{key}={_quoted(text)}"
    if name in HYDRA_PATHS:
        return f"{key}={_element(text, escape=str)}"
    if name == HYDRA_PARAMS:
        return f"{key}={_mapping(text, escape=str) or text}"
    kind = kind_of(name)
    if kind is not Kind.other:
        return f"{key}={_value(_Typed(key, kind, text, sweep, commas))}"
    if name in groups.groups() and text[0] not in "[{'\"":
        return f"{key}={','.join(map(_option, choices(text)))}"
    return argument if text[0] in "[{'\"" or _parsed(text) is not _UNREADABLE else f"{key}={_quoted(text)}"


def _parsed(text: str) -> Any:
    """What Hydra's grammar reads; ``_UNREADABLE`` if it cannot."""
    try:
        return OverridesParser.create().parse_override(f"key={text}")._value
    except HydraException:
        return _UNREADABLE


def _quoted(text: str) -> str:
    return _in_quotes(escaped(text))


def _option(text: str) -> str:
    """An option of a group. Hydra fails on one that is a number, instead of reporting that there is none of that name."""
    found = _parsed(text)
    return _in_quotes(text) if found is _UNREADABLE or isinstance(found, (int, float)) else text


def _in_quotes(text: str) -> str:
    return str(QuotedString(text, Quote.single).with_quotes())


def _element(text: str, escape: Callable[[str], str] = escaped) -> str:
    """One text, or null. What Hydra and OmegaConf read as just that text, and write so for the jobs of a sweep, stays as it is."""
    found = _parsed(text)
    if isinstance(found, QuotedString):
        inner = found.text if escape is str else _literal(found.text)
        return text if inner == found.text else _in_quotes(inner)
    if found is None or (found == text and escape(text) == text and not ESCAPED.search(text)):
        return text
    return _in_quotes(escape(text))


def _literal(text: str) -> str:
    """A text in Hydra's quotes without interpolations. ``\\${`` has its meaning already, so that quoting twice changes nothing."""
    if text in (MISSING, MISSING_AS_TEXT):
        return MISSING_AS_TEXT
    return re.sub(r"(?<!\\)((?:\\\\)*)\$\{", r"\1\\${", text)


def _template(text: str, sweep: bool) -> str:
    several = choices(text)
    if sweep and len(several) > 1 and all(one.strip() == "chat" or _is_quoted(one) for one in several):
        return ",".join(map(_element, several))
    return _element(text) if _is_quoted(text) or _parsed(text) is None else _quoted(text)


def _is_quoted(text: str) -> bool:
    return isinstance(_parsed(text), QuotedString)


@dataclass(frozen=True)
class _Typed:
    """A value as it was typed, and what it is for."""

    key: str
    """With ``+`` or ``~``."""
    kind: Kind
    text: str
    sweep: bool
    commas: bool

    @property
    def shape(self) -> Kind:
        """``kind``; for a setting that may have any, that of the value."""
        opening = self.text.lstrip()[:1]
        return {"[": Kind.texts, "{": Kind.mapping}.get(opening, Kind.text) if self.kind is Kind.any else self.kind

    @property
    def is_path(self) -> bool:
        """Whether commas are part of a path: one that exists, or the folder of a sweep's job, ``multirun/a/lr=1e-4,r=8``."""
        return JOB_FOLDER.fullmatch(self.text) is not None or files.is_there(self.text)

    def refusal(self, advice: str) -> ConfigError:
        """The error for it."""
        return ConfigError(f"{self.key}={self.text}: {advice}")


def _value(typed: _Typed) -> str:
    """The value in Hydra's grammar: several, with a comma between them, for a sweep."""
    text, shape = typed.text, typed.shape
    called = CHOICES.fullmatch(text) or INTERVALS.fullmatch(text)
    if called and not typed.sweep and not typed.commas:
        raise typed.refusal("several values are a sweep: add -m")
    if typed.sweep and INTERVALS.fullmatch(text):
        return text
    parts = [text] if called and not typed.sweep else choices(text)
    if len(parts) == 1 and _parsed(text) is None:
        return text
    if shape in (Kind.texts, Kind.mapping):
        found = [(_list if shape is Kind.texts else _mapping)(part) for part in parts]
        if None in found:
            return _without_brackets(typed, parts)
        if shape is Kind.texts and any(_is_torn(part) for part in parts):
            raise typed.refusal("an element with a comma in it is quoted as a whole, as in ['echo \"a, b\"',ls]")
        if len(found) > 1 and not typed.sweep:
            raise typed.refusal("several values are a sweep: add -m")
        return ",".join(map(str, found))
    if len(parts) == 1:
        return _element(parts[0] if called else _unescaped(text))
    if typed.is_path or (typed.commas and typed.kind is Kind.text):
        return _element(text)
    if typed.sweep:
        return ",".join(_element(_unescaped(part.strip())) for part in parts)
    if typed.kind is Kind.any:
        return _without_brackets(typed, parts)
    as_text = shlex.quote(f'{typed.key}="{text}"')
    raise typed.refusal(f"has a comma: to try each value add -m; as one text it is {as_text}{_as_files(typed, parts)}")


def _as_files(typed: _Typed, parts: list[str]) -> str:
    """For ``data.train=a,b``: how to train on several files."""
    if typed.key != "data.train":
        return ""
    first, *rest = (part.strip() for part in parts)
    mixed = ",".join(f"{part}*1" for part in rest)
    return f"; for all of them it is {shlex.quote(f'data.train={first}')} {shlex.quote(f'data.mix=[{mixed}]')}"


def _without_brackets(typed: _Typed, parts: list[str]) -> str:
    """A bare word as a list of one; several words, and a dict, are refused with what to type."""
    text = typed.text
    if typed.shape is Kind.mapping:
        if all(len(split(part, ":")) > 1 for part in parts):
            raise typed.refusal(f"a dict is in braces: {shlex.quote(f'{typed.key}={{{text}}}')}")
        return text  # OmegaConf reports that it is no dict
    if len(parts) == 1:
        return text if text.lstrip("'\" ")[:1] in "[{" else f"[{_element(text)}]"
    each = ",".join(f"[{part.strip()}]" for part in parts)
    swept = f", or for a sweep {shlex.quote(f'{typed.key}={each}')}" if typed.sweep else ""
    raise typed.refusal(f"a list is in brackets: {shlex.quote(f'{typed.key}=[{text}]')}{swept}")


def _list(text: str) -> str | None:
    """``[a,b]`` with each element as text; None for anything else."""
    inner = inside(text, "[]")
    if inner is None:
        return None
    parts = split(inner) if inner.strip() else []
    if any(not part.strip() or inside(part, "[]") is not None or inside(part, "{}") is not None for part in parts):
        return text  # an empty element, or a list in a list, which Hydra and OmegaConf report
    return f"[{','.join(_element(_unescaped(part.strip())) for part in parts)}]"


def _is_torn(text: str) -> bool:
    """Whether a comma inside of an element's quotes separates elements of the list ``text``."""
    return any(part.count('"') % 2 and not _is_quoted(part) for part in split(inside(text, "[]") or ""))


def _mapping(text: str, escape: Callable[[str], str] = escaped) -> str | None:
    """``{a: x, b: y}`` with each value as text; None for anything else."""
    inner = inside(text, "{}")
    if inner is None:
        return None
    items = [split(part, ":") for part in split(inner)] if inner.strip() else []
    if any(len(item) < 2 for item in items):
        return text  # Hydra reports it
    values = {key.strip(): ":".join(rest).strip() for key, *rest in items}
    return f"{{{','.join(f'{key}:{_element(_unescaped(value), escape)}' for key, value in values.items())}}}"


def _unescaped(text: str) -> str:
    """Hydra's escape of a comma, without which it would separate values."""
    return re.sub(r"(?<!\\)((?:\\\\)*)\\,", r"\1,", text)
