"""A row of the table of refusals. No torch."""

from collections.abc import Callable
from dataclasses import dataclass

from hydraft.config.schema import Config
from hydraft.system.hardware import Hardware


@dataclass(frozen=True)
class Rule:
    """A refusal: ``broken(config, hardware)`` is true for a run that cannot be."""

    broken: Callable[[Config, Hardware], bool]
    message: str
    """What is wrong and the override to change; ``{c}`` is the config, ``{h}`` the hardware."""
    source: str = ""
    """Where it is said, for what is not plain arithmetic."""
    here: bool = False
    """It is about this machine or this version: ``mode=plan`` notes it and goes on."""


def value(broken: Callable[[Config], bool], message: str, source: str = "", here: bool = False) -> Rule:
    """A rule that asks nothing of the machine."""
    return Rule(lambda c, _: broken(c), message, source, here)
