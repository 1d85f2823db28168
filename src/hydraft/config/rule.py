"""One rule of the table of refusals. No torch."""

from collections.abc import Callable
from dataclasses import dataclass

from hydraft.config.schema import Config
from hydraft.system.hardware import Hardware


@dataclass(frozen=True)
class Rule:
    """A refusal: ``broken(config, hardware)`` is true for a run that is refused."""

    broken: Callable[[Config, Hardware], bool]
    message: str
    """What is wrong and the override to change; ``{c}`` is the config, ``{h}`` the hardware."""
    source: str = ""
    """The document or source file that says so, if it is not obvious."""
    here: bool = False
    """Whether it is about this machine or this version: ``mode=plan`` then prints it as a note."""


def value(broken: Callable[[Config], bool], message: str, source: str = "", here: bool = False) -> Rule:
    """A rule that does not depend on the hardware."""
    return Rule(lambda c, _: broken(c), message, source, here)
