"""The overrides of a config: with them, train.py composes just this config. No torch.

They are those that a person would type: the option of each group that is nearest, and the settings that differ from it.
"""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf.errors import OmegaConfBaseException

from hydraft.api import composition
from hydraft.config import groups, text
from hydraft.config.explain import explain
from hydraft.config.schema import Config
from hydraft.config.sweep import SweepConfig
from hydraft.errors import ConfigError
from hydraft.runs import start

SECTIONS = tuple(one.name for one in dataclasses.fields(Config) if dataclasses.is_dataclass(one.type))

ROUNDS = 4
"""Times that overrides are added: a setting may be composed from another one, such as ``data.max_length`` from ``data.train``."""


def checked(config: Config) -> Config:
    """``config`` with the types of the schema: ``config.quant.kind = "nf4"`` in Python is the text, where the schema has an enumeration.

    Raises:
        ConfigError: a setting has another type, or there is none of that name.
    """
    if not isinstance(config, Config):
        raise ConfigError(f"{type(config).__name__}: is no config: give what hydraft.compose(…) returns")
    _refuse_unknown(config)
    try:
        return text.to_object(Config, _values(config))
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from None


def _refuse_unknown(section: Any, prefix: str = "") -> None:
    """Refuse attributes that are no settings, such as ``config.lora.rank = 4``, which Python accepts."""
    known = [one.name for one in dataclasses.fields(section)]
    for name in vars(section):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f"{prefix}{name}: no such setting" + (f"; did you mean {prefix}{near[0]}?" if near else "")
            )
    for name in known:
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            _refuse_unknown(value, f"{prefix}{name}.")


def _values(value: Any) -> Any:
    """Dicts, lists and scalars of a config; texts as they are."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: _values(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_values(item) for item in value]
    return value


def of(config: Config) -> list[str]:
    """The overrides with which ``python train.py`` composes ``config``.

    Of the sizes of a model, only the chosen one counts; ``mode``, ``resume`` and ``sweep`` are those of the command.

    Raises:
        ConfigError: a setting has another type than the schema's, or cannot be given as an override.
    """
    size = config.model.size
    wanted = _compared(checked(config), size)
    options = dict(_options(wanted))
    lines = {name: f"{name}={option}" for name, option in options.items()}
    if groups.values("model", options.get("model", "tiny")).get("model.path") == text.MISSING:  # it must be typed
        lines["model.path"] = f"model.path={written(wanted['model.path'])}"
    if size is not None and size != groups.values("model", options.get("model", "tiny")).get("model.size"):
        lines["model.size"] = f"model.size={written(size)}"  # it decides the name and the path
    if config.lora.start is not None:  # else the adapter would decide what is not typed
        lines |= {
            f"lora.{name}": f"lora.{name}={written(wanted[f'lora.{name}'])}"
            for name in start.OWN
            if name != "method" and f"lora.{name}" in wanted  # of a dict, only its items are
        }
    for _ in range(ROUNDS):
        composed = composition.composed_of(list(lines.values()), "train")
        found = _compared(composition.without_hydra(composed, Config), size)
        different = [name for name in wanted | found if _of(wanted, name) != _of(found, name)]
        if not different:
            return list(lines.values())
        if different[0] in lines:
            break
        lines |= {name: _line(name, wanted, found) for name in different}
    raise ConfigError(f"{different[0]}={_of(wanted, different[0])}: cannot be given as an override of train.py")


_MISSING = object()


def _of(values: Mapping[str, Any], name: str) -> Any:
    return values.get(name, _MISSING)


def _line(name: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The override that gives a setting, or the item of a dict, its wanted value."""
    if name not in wanted:
        return f"~{name}"
    added = "" if name in found else "+"  # a key of a dict
    return f"{added}{name}={written(wanted[name])}"


def written(value: Any) -> str:
    """A value in Hydra's grammar; texts are in quotes unless they are plain words."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{written(item)}' for key, item in value.items())}}}"
    plain = str(getattr(value, "value", value))
    return plain if _is_word(plain) else QuotedString(text.escaped(plain), Quote.single).with_quotes()


def _is_word(plain: str) -> bool:
    """Whether any reader takes a text for just that text."""
    letters = plain.replace("_", "").replace("/", "").replace("-", "").replace(".", "")
    return (
        letters.isascii()
        and letters.isalnum()
        and plain[0].isalpha()
        and plain.lower() not in ("null", "true", "false", "inf", "nan")
    )


def _compared(config: Config, size: str | None) -> dict[str, Any]:
    """Every setting by its dotted name, an enumeration's value as its text; of the model's sizes, only ``size``."""
    sizes = {name: shape for name, shape in config.model.sizes.items() if name == size}
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, sizes=sizes), sweep=SweepConfig())
    found = dict(_flat(_values(config), ""))
    return {
        name: value for name, value in found.items() if name not in ("mode", "resume") and not name.startswith("sweep.")
    }


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else key)
    else:
        yield name, getattr(value, "value", value)


def _options(wanted: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The option of each group that is nearest to a config, if that is not the default."""
    for group, default in groups.defaults("train").items():
        if group in SECTIONS and group != "sweep" and default is not None:
            ordered = sorted(groups.groups()[group], key=default.__ne__)
            nearest = min(ordered, key=lambda option: _distance(group, option, wanted))
            if nearest != default:
                yield group, nearest


DECISIVE = ("kind", "method", "name")
"""Settings by which a person would choose an option."""


def _distance(group: str, option: str, wanted: Mapping[str, Any]) -> int:
    """In how many settings an option differs from a config; those that are composed from others do not count."""
    plain = {name: value for name, value in groups.values(group, option).items() if "${" not in str(value)}
    wrong = [name for name, value in plain.items() if name in wanted and not _same(wanted[name], value)]
    size = f"{group}.sizes."
    if any(name.startswith(size) for name in plain) and not any(
        name.startswith(size) and name in wanted for name in plain
    ):
        wrong.append(size)
    return sum(100 if name in [f"{group}.{one}" for one in DECISIVE] else 1 for name in wrong)


def _same(value: Any, written: Any) -> bool:
    """Whether a value of a config is that of a YAML file: ``2e-4`` there is a text for some readers."""
    try:
        return bool(value == written) or (isinstance(value, float) and value == float(written))
    except (TypeError, ValueError):
        return False
