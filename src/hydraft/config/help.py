"""``--help``: the overview of a command, and ``--help NAME`` for a setting, a section or a config group. No torch.

Hydra's own help loads the config once for every option of every group; this one lists the files.
"""

import difflib
import re
import shutil
import string
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, flag_override

from hydraft.config import groups, moved, reference
from hydraft.config.other_names import meant
from hydraft.config.own_options import CONF
from hydraft.config.reference import Section, Setting
from hydraft.errors import EXIT_REFUSED
from hydraft.system import program

FLAGS = ("-h", "--help")
NARROWEST, WIDEST = 60, 120
"""Columns of a text, on a terminal of at least and at most so many."""

LONG_MEANING = 100
"""Characters of a first sentence of which only the part before a colon is shown."""

MOST_USED = {
    "train": (
        "data.train", "data.eval", "data.max_length", "train.epochs", "train.max_steps", "train.learning_rate",
        "train.micro_batch_size", "train.gradient_accumulation_steps", "train.eval_every", "lora.r", "lora.alpha", "seed",
    ),
    "infer": (),
}  # fmt: skip
"""By command: the settings that ``--help`` explains."""


def requested(arguments: list[str]) -> bool:
    """Whether a command line requests help that is printed here; with other flags Hydra prints its own."""
    flags = {argument for argument in arguments if argument.startswith("-")}
    return bool(flags) and flags <= set(FLAGS)


def print_help(command: str, arguments: list[str]) -> int:
    """Print the help that a command line requests.

    Returns:
        The exit code; 2 for a name that is unknown.
    """
    given = [argument for argument in arguments if argument not in FLAGS]
    overrides = [argument for argument in given if "=" in argument or argument.startswith("~")]
    names = [argument for argument in given if argument not in overrides]
    if not names:
        print(overview(command, overrides))
        return 0
    texts = {name: explain(command, moved.name(name)) for name in names}
    for name, text in texts.items():
        if text is None:
            hint = did_you_mean(name, command)
            print(f"{program.named(command)}: {name}: no such setting, section or group{hint}", file=sys.stderr)
            return EXIT_REFUSED
    print("\n\n".join(text for text in texts.values() if text))
    return 0


def overview(command: str, overrides: list[str]) -> str:
    """The text of ``--help``: the template in ``conf/hydra/help/`` with the groups and, where it has them, the settings."""
    texts: Any = OmegaConf.to_container(OmegaConf.load(CONF / "hydra" / "help" / f"{command}.yaml"), resolve=False)
    config = ""
    if overrides or "$CONFIG" in texts["template"]:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose(command, overrides)
        with flag_override(composed, ["struct", "readonly"], False):
            config = OmegaConf.to_yaml(composed)
    lines = [_hanging(f"{group}: {', '.join(options)}") for group, options in groups.groups().items()]
    listed = "".join(f"{line}\n" for line in lines)
    template = string.Template(texts["template"].replace("${hydra.help.header}", texts["header"]))
    settings = "\n".join(_most_used(command))
    return program.as_typed(template.substitute(APP_CONFIG_GROUPS=listed, CONFIG=config, SETTINGS=settings))


def _most_used(command: str) -> Iterator[str]:
    """The settings that are used most, each with its default and the first sentence of its meaning."""
    known = {setting.name: setting for section in reference.sections(command) for setting in section.settings}
    shown = {name: f"  {name}={known[name].default}".replace(reference.REQUIRED, "…") for name in MOST_USED[command]}
    width = max(map(len, shown.values()), default=0) + 2
    for name, text in shown.items():
        first = re.split(r"(?<=\.) ", _plain(" ".join(known[name].meaning.split())))[0]
        if len(first) > LONG_MEANING:
            first = f"{first.partition(': ')[0].removesuffix('.')}."
        yield from textwrap.wrap(
            first, _width(), initial_indent=f"{text:{width}}", subsequent_indent=" " * width, break_on_hyphens=False
        )


def _hanging(text: str) -> str:
    return textwrap.fill(text, _width(), subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)


def _width() -> int:
    return min(WIDEST, max(NARROWEST, shutil.get_terminal_size().columns))


def _groups(command: str) -> dict[str, list[str]]:
    """The config groups of a command."""
    taken = groups.defaults(command)
    return {group: options for group, options in groups.groups().items() if group in taken}


def explain(command: str, name: str) -> str | None:
    """The help of a setting, a section or a config group; None for an unknown name."""
    parts, found = reference.sections(command), _groups(command)
    setting = next((one for part in parts for one in part.settings if one.name == name), None)
    section = next((part for part in parts if part.name == name), None)
    if setting is not None and section is None:
        return "\n".join(_of_setting(command, setting))
    lines: list[str] = []
    if section is not None:
        inner = [part for part in parts if part.name.startswith(f"{name}.")]
        lines += _of_section(section, inner)
    if name in found:
        default = groups.defaults(command)[name]
        lines += ["", *_of_group(name, found[name], default)] if lines else _of_group(name, found[name], default)
    return "\n".join(lines) or None


def _of_setting(command: str, setting: Setting) -> Iterator[str]:
    yield setting.name
    yield from _wrapped(_plain(setting.meaning))
    rows = {
        "type": setting.type,
        "default": setting.default,
        "unit": setting.unit,
        "allowed": ", ".join(setting.choices) or setting.bounds,
        "set by": ", ".join(f"{option} ({value})" for option, value in _set_by(command, setting.name)),
    }
    for label, text in rows.items():
        if text:
            yield f"  {label + ':':9}{text}"


def _set_by(command: str, name: str) -> Iterator[tuple[str, str]]:
    """The options of groups whose files set a setting, and the value."""
    for group, options in _groups(command).items():
        for option in options:
            values = groups.values(group, option)
            if name in values:
                yield f"{group}={option}", reference.shown(values[name])


def _of_section(section: Section, inner: list[Section]) -> Iterator[str]:
    yield f"{section.name}: {_plain(section.meaning)}"
    for setting in (one for part in (section, *inner) for one in part.settings):
        unit = f" {setting.unit}" if setting.unit and setting.default[0].isdigit() else ""
        yield f"  {setting.name}={setting.default}{unit}"
        yield from _wrapped(_plain(setting.meaning), indent="      ")


def _of_group(group: str, options: list[str], default: str | None) -> Iterator[str]:
    yield f"{group}=…: options of the config group, in conf/{group}/"
    width = max(map(len, options))
    for option in options:
        mark = " (default)" if option == default else ""
        yield f"  {option:{width}}  {groups.summary(group, option)}{mark}"


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(text, _width(), initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _plain(text: str) -> str:
    return text.replace("``", "")


def did_you_mean(name: str, command: str) -> str:
    """The setting that was meant: one with that last part, another program's name, those initials, or nearly that name.

    Empty if none is close.
    """
    known = reference.names(command) + list(_groups(command))
    parent, _, leaf = name.rpartition(".")
    siblings = [other for other in known if other.rpartition(".")[0] == parent]
    initials = {other: "".join(word[:1] for word in other.rpartition(".")[2].split("_")) for other in known}
    elsewhere = (meant(command, leaf, "") or "").rpartition(" ")[2].partition("=")[0]
    close = (
        [other for other in known if other.rpartition(".")[2] == leaf]
        or [other for other in known if other == elsewhere]
        or [other for other in siblings if initials[other] == leaf]
        or difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
        or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    )
    return f"; did you mean {close[0]}?" if close else ""
