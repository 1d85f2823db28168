"""A run's config in a folder that is not this user's own does not decide what is run, contacted or read. No torch.

Whoever can write the folder could have written any config. So the settings that the schema marks with an ``Effect`` count only as far
as this command line has the same value.
"""

import dataclasses
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from hydraft.config.bounds import Effect, bounds_of
from hydraft.config.choices import Mode, TrackerKind
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.system import ownership

FILE = "config.yaml"

WANDB = (Path("wandb", "settings"), Path(".wandb", "settings"))
"""Files in a run's folder from which wandb would take its server (wandb_settings.py, settings_workspace)."""


@dataclasses.dataclass(frozen=True)
class Marked:
    """A setting with an effect, or an item of one that is a dict."""

    name: str
    value: Any
    default: Any
    effect: Effect
    in_dict: bool = False

    @property
    def typed(self) -> str:
        """The override that sets it, for a shell."""
        return shlex.quote(f"{'+' if self.in_dict else ''}{self.name}={_typed(self.value)}")


def refuse(config: Config, composed: Mapping[Any, Any], folder: Path) -> None:
    """Refuse a config that was read from another's folder and has effects which this command line does not ask for.

    Args:
        config: of the run in ``folder``, with the overrides of this command line.
        composed: the values of the command line alone.
        folder: of the run.

    Raises:
        ConfigError: lists the overrides that the user has to give, or names a file.
    """
    doubt = ownership.doubt(folder, FILE)
    if doubt is None:
        return
    listed = [one.typed for one in marked(config) if _counts(one, config) and not _is_given(one, composed)]
    if listed:
        raise ConfigError(
            f"resume={folder}: {doubt}, and its config decides what is run, contacted or read: "
            f"give each of these on the command line, or another value: {' '.join(listed)}"
        )
    if config.mode is Mode.train:
        _refuse_files(config, folder, doubt)


def _refuse_files(config: Config, folder: Path, doubt: str) -> None:
    """Refuse what would lead a run that writes into another's folder elsewhere."""
    for file in sorted(folder.iterdir()):
        if file.is_symlink():
            raise ConfigError(f"resume={folder}: {doubt}, and {file} is a symbolic link, through which it would write")
    for settings in WANDB if config.tracker.kind is TrackerKind.wandb else ():
        if (folder / settings).exists():
            raise ConfigError(f"resume={folder}: {doubt}, and {folder / settings} names a server of wandb: remove it")


def marked(section: Any, prefix: str = "") -> Iterator[Marked]:
    """Every setting in ``section``, and in the sections below it, that has an effect."""
    for declared in dataclasses.fields(section):
        value, name, effect = getattr(section, declared.name), f"{prefix}{declared.name}", bounds_of(declared).effect
        if dataclasses.is_dataclass(value):
            yield from marked(value, f"{name}.")
        elif effect is not Effect.none and isinstance(value, dict):
            yield from (Marked(f"{name}.{key}", item, ..., effect, in_dict=True) for key, item in value.items())
        elif effect is not Effect.none:
            made = declared.default_factory
            yield Marked(name, value, declared.default if made is dataclasses.MISSING else made(), effect)


def _counts(one: Marked, config: Config) -> bool:
    """Whether a setting has its effect in this run."""
    if one.value == one.default:
        return False
    match one.effect:
        case Effect.names_code:
            return config.model.trust_remote_code
        case Effect.reads:
            return config.mode is Mode.train
    return True


def _is_given(one: Marked, composed: Mapping[Any, Any]) -> bool:
    """Whether the command line has the same value."""
    found: Any = composed
    for part in one.name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return False
        found = found[part]
    return bool(found == one.value)


def _typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{','.join(QuotedString(str(item), Quote.single).with_quotes() for item in value)}]"
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    return str(getattr(value, "value", value))
