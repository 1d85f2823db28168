"""From what is typed into the form to the arguments of train.py, and what the board does not pass on. No torch.

Settings are typed as on a command line, without a shell: its quotes are not needed, and nothing in a value means anything to one.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hydraft.board.roots import Root
from hydraft.config import groups, printed, reference
from hydraft.config.setting_kind import Kind, kind_of
from hydraft.config.split_text import CHOICES, INTERVALS, split
from hydraft.errors import ConfigError

SWEEP = ("-m", "--multirun")

NAME = re.compile(r"[+~]{0,2}([A-Za-z_][\w./@$-]*)")

ALLOWED = re.compile(r"hydra/(launcher|sweeper)|hydra\.(launcher|sweeper)\.[\w.]+|hydra\.(run|sweep)\.dir")
"""What may be set of Hydra's own config: how a sweep runs, and folders below those of the board."""

CHOSEN = {
    "mode": "the board starts training",
    "resume": "a run is resumed on its own page",
    "sweep.resume": "a sweep is resumed on its own page",
}
"""Settings that decide what a command does, which the board's buttons do."""

FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")


@dataclass(frozen=True)
class Typed:
    """A command line of train.py."""

    overrides: list[str]
    sweep: bool
    """Whether it is a sweep (``-m``)."""

    @property
    def arguments(self) -> list[str]:
        """As train.py gets them."""
        return ["-m", *self.overrides] if self.sweep else self.overrides

    @property
    def line(self) -> str:
        """As it is typed into a shell."""
        return printed.command("train", *map(printed.shell_word, self.arguments))

    def value_of(self, name: str) -> str | None:
        """The last value that is given to a setting; None if none is."""
        found = [one.partition("=")[2] for one in self.overrides if _name(one) == name and "=" in one]
        return found[-1] if found else None


def typed(chosen: Mapping[str, str], settings: Mapping[str, str], more: str = "") -> Typed:
    """The command line for options of groups, settings and a line of further overrides.

    Raises:
        ConfigError: it has something that the board does not pass on.
    """
    for name in (*chosen, *settings):
        if NAME.fullmatch(name) is None:
            raise ConfigError(f"{name!r}: is no name of a setting")
    try:
        words = shlex.split(more)
    except ValueError as error:
        raise ConfigError(f"{more}: {error}: close the quotes") from None
    sweep = any(word in SWEEP for word in words)
    named = [f"{name}={value}" for name, value in (*chosen.items(), *settings.items())]
    overrides = [*named, *(word for word in words if word not in SWEEP)]
    for one in overrides:
        _refuse(one)
    return Typed(overrides, sweep or any(map(is_several, overrides)))


def is_several(override: str) -> bool:
    """Whether an override has several values for a sweep. A comma in a text is text."""
    name, _, value = override.partition("=")
    if INTERVALS.fullmatch(value) or CHOICES.fullmatch(value):
        return True
    return len(split(value)) > 1 and kind_of(name.lstrip("+~")) is Kind.other


def _name(override: str) -> str:
    return override.partition("=")[0].strip().lstrip("+~").partition("@")[0]


def _refuse(override: str) -> None:
    if "\0" in override or any("\ud800" <= character <= "\udfff" for character in override):
        raise ConfigError(f"{override!r}: has characters that are not UTF-8 text")
    if override.startswith("-"):
        raise ConfigError(f"{override}: the board passes overrides on, and no options: leave it out")
    name = _name(override)
    if name in CHOSEN and override != "mode=train":
        raise ConfigError(f"{override}: {CHOSEN[name]}: leave it out")
    hydras = name == "hydra" or name.startswith(("hydra/", "hydra."))
    if (hydras and not ALLOWED.fullmatch(name)) or "_target_" in override:
        raise ConfigError(f"{override}: the board does not pass Hydra's own settings on: leave it out")


def check_folders(command: Typed, roots: Sequence[Root]) -> None:
    """Refuse a folder that the command names and that is not below those of the board.

    Raises:
        ConfigError: names the setting.
    """
    for name in FOLDERS:
        value = command.value_of(name)
        if value is not None:
            below(value, f"{name}={value}", roots)
    if (sweep := command.value_of("sweep.name")) is not None:
        below(str(Path("multirun") / sweep), f"sweep.name={sweep}", roots)


def below(path: str, place: str, roots: Sequence[Root]) -> Path:
    """A folder that is to be made, as an absolute path.

    Raises:
        ConfigError: it is not below a root, or a symbolic link leads elsewhere.
    """
    folder = Path(os.path.abspath(path))  # noqa: PTH100
    if "$" in path or "\\" in path or "'" in path or '"' in path:
        raise ConfigError(f"{place}: the board takes a plain path: leave it out, or type one")
    try:
        real = folder.resolve()
    except (OSError, RuntimeError):
        real = folder
    if not any(root.folder in folder.parents and root.folder in real.parents for root in roots):
        there = ", ".join(str(root.folder) for root in roots)
        raise ConfigError(f"{place}: is not below the folders of this board ({there}): leave it out, or name one there")
    return folder


@cache
def _names() -> frozenset[str]:
    return frozenset((*reference.names("train"), *groups.defaults("train")))


def fields_of(refusal: str) -> list[str]:
    """The settings and groups that a refusal is about, in the order in which it names them."""
    found = re.findall(r"(?<![\w./-])[A-Za-z_]\w*(?:[./][A-Za-z_]\w*)*(?==)|[A-Za-z_]\w*(?:\.\w+)+", refusal)
    first = NAME.match(refusal)
    names = [*([first[1]] if first and refusal[first.end() : first.end() + 1] in "=:" else []), *found]
    return [name for name in dict.fromkeys(names) if name in _names()]
