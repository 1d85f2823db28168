"""Commands and overrides as they are printed: pasted into a shell, they mean what was meant. No torch.

A value passes two readers: the shell, and Hydra with ``typed_text.py`` before it, which read a path such as ``[a]`` or ``'a'`` as a list
or as text in quotes.
"""

import re
import shlex
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydraft.config.text import escaped
from hydraft.config.typed_text import quote
from hydraft.errors import ConfigError
from hydraft.system import program


def override(key: str, value: str | Path) -> str:
    """``key=value`` as one word of a shell, with which the setting ``key`` has just this text."""
    text = str(value)
    plain = f"{key}={text}"
    if all(_read(plain, commas) == text for commas in (False, True)):
        return shell_word(plain)
    return shell_word(f"{key}={QuotedString(escaped(text), Quote.single).with_quotes()}")


def shell_word(text: str) -> str:
    """``text`` as one word of a shell; letters of any language need no quotes."""
    return text if re.fullmatch(r"[\w@%+=:,./…-]+", text) else shlex.quote(text)


def short_path(path: Path) -> str:
    """``path`` relative to the current folder if it is below it."""
    path, here = path.absolute(), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def command(script: str, *words: str) -> str:
    """The command ``train`` or ``infer`` with words that are those of a shell already."""
    return " ".join([program.typed(script), *words])


def _read(argument: str, commas: bool) -> object:
    """The value that a command line with this argument gives to its setting, in train.py or infer.py; None if it is refused."""
    try:
        parsed = OverridesParser.create().parse_override(quote(argument, commas=commas)).value()
        return OmegaConf.create({"value": parsed})["value"]
    except (ConfigError, HydraException, OmegaConfBaseException):
        return None
