"""One rule of the table of refusals. No torch."""

from collections.abc import Callable
from dataclasses import dataclass

from hydraft.config.schema import Config
from hydraft.system import program
from hydraft.system.hardware import Hardware


@dataclass(frozen=True)
class Rule:
    """A refusal: ``broken(config, hardware)`` is true for a run that is refused."""

    broken: Callable[[Config, Hardware], bool]
    message: str
    """What is wrong and the override to change; ``{c}`` is the config, ``{h}`` the hardware, ``{train}`` the command, ``{pip}`` that of an extra."""
    source: str = ""
    """The document or source file that says so, if it is not obvious."""
    here: bool = False
    """Whether it is about this machine or this version: ``mode=plan`` then prints it as a note."""

    def text(self, config: Config, hardware: Hardware) -> str:
        """The message for a run that is refused."""
        return self.message.format(c=config, h=hardware, train=program.typed("train"), pip=program.PIP)


def value(broken: Callable[[Config], bool], message: str, source: str = "", here: bool = False) -> Rule:
    """A rule that does not depend on the hardware."""
    return Rule(lambda c, _: broken(c), message, source, here)
