"""The settings of runs, redacted, and which of them differ. No torch."""

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from hydraft.sweep.results import config_text
from hydraft.system.redaction import redact

UNIMPORTANT = ("mode", "resume", "sweep", "tracker", "model.sizes", "model.path")
"""Settings that are not columns of the table: they do not change what a run computes."""

LARGEST = 2**20
"""Characters of a config. A run's has about 4,000."""

MAYBE_ALIAS = re.compile(r"(?<![^\s\[{,])\*[^\s*]")
"""Where an alias may stand; a value that begins so is in quotes."""

BLOCK = re.compile(r"^(?=  [A-Za-z_])", re.MULTILINE)
"""Where a setting of a section begins."""


def settings(text: str) -> dict[str, Any]:
    """Every setting in a ``config.yaml`` by its dotted name, without secrets.

    Sections are cut into settings, which are read once each: most runs have most settings in common.

    Raises:
        ValueError: it is no config.
    """
    if len(text) > LARGEST:
        raise ValueError("it is too large for a config")
    if MAYBE_ALIAS.search(text) and any(isinstance(token, yaml.AliasToken) for token in _tokens(text)):
        raise ValueError(
            "it has an alias, which a saved config does not have"
        )  # a few lines of them stand for gigabytes
    found: dict[str, Any] = {}
    for section in config_text.SECTION.split(text):
        head, *blocks = BLOCK.split(section)
        for piece in (head + block for block in blocks) if blocks and head.count("\n") == 1 else (section,):
            found.update(_read(piece))
    if not found:
        raise ValueError("it is empty")
    return found


def _tokens(text: str) -> Iterator[Any]:
    try:
        yield from yaml.scan(text, Loader=config_text.LOADER)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


@functools.lru_cache(maxsize=65536)
def _read(text: str) -> dict[str, Any]:
    return dict(redact(config_text.settings(text)))


def is_column(key: str) -> bool:
    """Whether a setting may be a column."""
    return not any(key == name or key.startswith(f"{name}.") for name in UNIMPORTANT)


def differing(configs: Sequence[dict[str, Any]]) -> list[str]:
    """The settings that do not have the same value in all of ``configs``, in the order of the file.

    A setting that only some configs have was added by a later version: a missing value is no difference.
    """
    first: dict[str, Any] = {}
    found: dict[str, None] = {}
    for config in configs:
        for key, value in config.items():
            if key not in found and first.setdefault(key, value) != value and is_column(key):
                found[key] = None
    return [key for key in first if key in found]
