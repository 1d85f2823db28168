"""YAML that the program wrote itself, read as data: what is in it names no variable, no other node and no object. No torch."""

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf._utils import get_omega_conf_dumper, get_yaml_loader

from hydraft.config.text import MISSING, MISSING_AS_TEXT, original
from hydraft.errors import ConfigError

LARGEST = 4 * 2**20
"""Bytes. A run's config has about 10 kB."""

INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")
"""``${`` that OmegaConf would resolve: in what the program wrote, each has a backslash before it."""


def dumped(values: dict[str, Any]) -> str:
    """YAML of ``values`` as OmegaConf writes that of a config with them (``OmegaConf.to_yaml``), without making one."""
    found: str = yaml.dump(
        values, default_flow_style=False, allow_unicode=True, sort_keys=False, Dumper=get_omega_conf_dumper()
    )
    return found


def read(path: Path) -> dict[str, Any]:
    """The values in ``path``, with the texts that ``schema.saved`` has escaped; keys without a value are left out.

    Raises:
        ConfigError: it has an interpolation or an alias, or is no mapping.
        OSError, ValueError, yaml.YAMLError: it cannot be read.
    """
    with path.open("rb") as file:
        written = file.read(LARGEST + 1)
    if len(written) > LARGEST:
        raise ConfigError(f"it is larger than {LARGEST} bytes")
    loaded = yaml.load(written.decode("utf-8"), Loader=_loader())
    if not isinstance(loaded, dict):
        raise ConfigError("it is empty" if loaded is None else "it is no mapping")
    found: dict[str, Any] = _plain(loaded, "")
    return found


def _plain(value: Any, name: str) -> Any:
    """``value`` without the escapes of ``text.escaped``."""
    if isinstance(value, str):
        if value != MISSING_AS_TEXT and INTERPOLATION.search(value):
            raise ConfigError(f"{name}: {value}: an interpolation, which a saved config does not have")
        return original(value)
    if isinstance(value, list):
        return [_plain(item, f"{name}.{number}") for number, item in enumerate(value)]
    if isinstance(value, dict):
        inner = {key: f"{name}.{key}" if name else str(key) for key in value}
        return {key: _plain(item, inner[key]) for key, item in value.items() if item != MISSING}
    return value


def _loader() -> Any:
    """OmegaConf's loader, a SafeLoader, without aliases: a few lines of them can stand for gigabytes."""

    class Loader(get_yaml_loader()):  # type: ignore[misc]
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ConfigError("it has an alias, which a saved config does not have")
            return super().compose_node(parent, index)

    return Loader
