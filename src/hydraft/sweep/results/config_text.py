"""The settings in a run's ``config.yaml``, for a report on thousands of runs. No torch.

The jobs of a sweep have most sections of their configs in common, and reading YAML takes a hundred times longer than comparing text: so
each section is read once.
"""

import functools
import re
from typing import Any

import yaml

from hydraft.config import moved
from hydraft.sweep.results.axes import flat

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""OmegaConf takes 30 ms a file."""

SECTION = re.compile(r"^(?=[A-Za-z_]\w*:(?:\s|$))", re.MULTILINE)
"""Where a section begins: a key that is not indented."""


def settings(text: str) -> dict[str, Any]:
    """Every setting by its dotted name.

    Raises:
        ValueError: it is not YAML.
    """
    head, *sections = SECTION.split(text)
    if head.strip():  # not as hydraft writes it
        return {moved.name(name): value for name, value in _section(text).items()}
    found: dict[str, Any] = {}
    for section in sections:
        found.update(_section(section))
    return {moved.name(name): value for name, value in found.items()}


@functools.lru_cache(maxsize=4096)
def _section(text: str) -> dict[str, Any]:
    try:
        found = yaml.load(text, Loader=LOADER)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    return flat(found) if isinstance(found, dict) else {}
