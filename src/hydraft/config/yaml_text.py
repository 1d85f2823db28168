"""Texts in the files of ``conf/`` that YAML reads as numbers or truth values, which changes their spelling. No torch."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import yaml
from omegaconf._utils import get_yaml_loader

from hydraft.config.groups import GLOBAL
from hydraft.config.setting_kind import Kind, kind_of
from hydraft.errors import ConfigError

PARAMS = "hydra.sweeper.params."


def refuse_numbers(folders: Iterable[Path], choices: Mapping[str, str | None]) -> None:
    """Refuse a chosen file in which a setting whose type is text has a value that would change: ``revision: 7e54321``.

    Args:
        folders: that have config groups.
        choices: the option of each group.

    Raises:
        ConfigError: names the file and the setting.
    """
    for folder in folders:
        for group, option in choices.items():
            file = folder / group / f"{option}.yaml"
            if option is None or not file.is_file():
                continue
            text = file.read_text(encoding="utf-8")
            prefix = "" if GLOBAL in text else f"{group.replace('/', '.')}."
            for name, value, read in _numbers(text, prefix.rstrip(".")):
                raise ConfigError(f'{file}: {name}: {value}: YAML reads it as {read}: put it in quotes: "{value}"')


@functools.cache
def _numbers(text: str, prefix: str) -> list[tuple[str, str, str]]:
    """Texts in a file's content that would change: the setting, its value, and what YAML reads. Each job of a sweep asks again."""
    found = []
    for name, node in _scalars(yaml.compose(text, Loader=get_yaml_loader()), prefix):
        read = _changed(name.removeprefix(PARAMS), node)
        if read is not None:
            found.append((name, node.value, read))
    return found


def _scalars(node: yaml.Node | None, name: str) -> Iterator[tuple[str, yaml.ScalarNode]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _scalars(value, f"{name}.{key.value}" if name else str(key.value))
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _scalars(value, f"{name}.{number}")
    elif isinstance(node, yaml.ScalarNode):
        yield name, node


def _changed(name: str, node: yaml.ScalarNode) -> str | None:
    """What YAML reads instead of a text; None if it is that text, or the setting is no text."""
    if node.tag.rpartition(":")[2] not in ("int", "float", "bool") or kind_of(name) is not Kind.text:
        return None
    read = str(yaml.load(node.value, Loader=get_yaml_loader()))
    return None if read == node.value else read
