"""Wrong command lines, and what to type instead, before Hydra composes anything. No torch."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydraft.config import group_choice, groups, reference
from hydraft.config.help import did_you_mean
from hydraft.config.other_names import ABSENT, OF_INFER, meant, option
from hydraft.config.printed import shell_word
from hydraft.config.setting_kind import Kind, kind_of
from hydraft.config.split_text import split
from hydraft.config.typed_text import TEMPLATES, VERBATIM
from hydraft.errors import ConfigError
from hydraft.system import files, ownership, program

WITH_VALUE = (
    "--info", "-i", "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun",
)  # fmt: skip
"""Flags of Hydra (hydra/_internal/utils.py, get_args_parser) that take a value."""

FLAGS = (
    "--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion", "-sc",
    *WITH_VALUE,
)  # fmt: skip
"""All flags of Hydra."""

FOLDERS = ("--config-path", "-cp", "--config-dir", "-cd")
"""Those that name a folder of options."""

SHOWN = ("job", "hydra", "all")
ABOUT = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
ONE_OF = {"--cfg": SHOWN, "-c": SHOWN, "--info": ABOUT, "-i": ABOUT}
"""By flag: its values (hydra/_internal/utils.py, get_args_parser)."""

PICKLED = "--experimental-rerun"
"""That whose file is a pickled config (hydra/_internal/utils.py, _run_hydra)."""

LONGEST = 20_000
"""Characters of a value, other than a prompt."""

DEEPEST = 16
"""Brackets in each other; no setting has more than three."""

RECORDS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".gz", ".zst")
"""Suffixes of files with records."""


YAML = (".yaml", ".yml")


def refuse(arguments: Sequence[str], command: str) -> None:
    """Refuse a command line that is not one of overrides, or that has names of another program.

    Args:
        arguments: as typed, without the script.
        command: ``train`` or ``infer``.

    Raises:
        ConfigError: says what to type.
    """
    _refuse_unreadable(arguments)
    others = bool({argument.partition("=")[0] for argument in arguments} & {*FOLDERS, "hydra.searchpath"})
    after = 0  # an argument that belongs to the one before
    for number, argument in enumerate(arguments):
        rest = arguments[number + 1 :]
        if number < after or argument.startswith("~"):
            continue
        if argument.startswith("-"):
            name = argument.partition("=")[0]
            if name not in FLAGS and sum(len(name) > 4 and flag.startswith(name) for flag in FLAGS) != 1:
                raise ConfigError(_dashed(argument, rest, command))
            _refuse_value_of(argument, rest)
            after = number + 2 if name in WITH_VALUE and "=" not in argument else after
        elif "=" not in argument or argument.startswith("="):
            if {"-h", "--help"} & set(arguments):
                continue  # the name of a setting
            raise ConfigError(_word(argument, arguments[:number], rest, command))
        else:
            _refuse_override(argument, command)
            group_choice.refuse(argument, command, others)


def flags_first(arguments: Sequence[str]) -> list[str]:
    """A command line with its flags before its overrides: Hydra takes none between two of them."""
    flags: list[str] = []
    others: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if not argument.startswith("-"):
            others.append(argument)
            continue
        flags.append(argument)
        if argument in WITH_VALUE and left and not left[0].startswith("-"):
            flags.append(left.pop(0))
    return flags + others


def _refuse_unreadable(arguments: Sequence[str]) -> None:
    """Refuse what no file could hold as it is, and what would run code from another's folder before a config is read."""
    for number, argument in enumerate(arguments):
        if "\0" in argument or any("\ud800" <= character <= "\udfff" for character in argument):
            raise ConfigError(f"{argument}: has characters that are not UTF-8 text")
        flag, equals, value = argument.partition("=")
        if flag not in (*VERBATIM, *TEMPLATES):
            _refuse_endless(flag, value)
        if flag == PICKLED:
            raise ConfigError(
                f"{flag}: reads a pickle, which may contain code; to go on with a run use resume=<its folder>"
            )
        folder = Path((value if equals else next(iter(arguments[number + 1 :]), "")).removeprefix("file://") or ".")
        if flag in FOLDERS and folder.is_dir() and (owner := ownership.of_another(folder)):
            raise ConfigError(
                f"{flag} {folder}: belongs to {owner}, and a folder of options decides what is run: copy what you have read to a folder of your own"
            )


def _refuse_value_of(argument: str, rest: Sequence[str]) -> None:
    """Refuse a flag of Hydra without its value, or with one that it does not take."""
    flag, equals, value = argument.partition("=")
    value = value if equals else next(iter(rest), "")
    if flag in ("--info", "-i") and not equals and (not value or value.startswith("-")):
        return  # its value may be left out
    if flag in WITH_VALUE and not value:
        raise ConfigError(f"{flag}: needs a value")
    if flag in ONE_OF and value not in ONE_OF[flag]:
        raise ConfigError(f"{flag} {value}: must be one of {', '.join(ONE_OF[flag])}")


def _refuse_endless(name: str, value: str) -> None:
    """Refuse a value that Hydra's parser takes minutes for."""
    if len(value) > LONGEST:
        raise ConfigError(f"{name}={value}: has {len(value)} characters, and at most {LONGEST} are read")
    depth = deepest = 0
    for character in value:
        depth += (character in "[{(") - (character in "]})")
        deepest = max(depth, deepest)
    if deepest > DEEPEST:
        raise ConfigError(f"{name}={value}: has {deepest} brackets in each other, and at most {DEEPEST} are read")


def refuse_sweep(overrides: Sequence[str], has_params: bool) -> None:
    """Refuse a ready-made sweep (``sweep=rank_lr``) in a single run, where its values would not be tried, and several seeds.

    Args:
        overrides: of the run.
        has_params: whether the sweeper has values of its own to try.

    Raises:
        ConfigError: names the override.
    """
    for override in overrides:
        if has_params and override.startswith("sweep="):
            raise ConfigError(f"{override}: is for a sweep: add -m, or leave it out")
    refuse_replicas(overrides, "is for a sweep: add -m")


def refuse_replicas(overrides: Sequence[str], why: str) -> None:
    """Refuse several seeds where there is nothing that would run them.

    Raises:
        ConfigError: names the override, and ``why``.
    """
    for override in overrides:
        if re.match(r"\W*sweep\.(replicas|decide|max_replicas)=", override):
            raise ConfigError(f"{override}: {why}, or leave it out")


def _dashed(argument: str, rest: Sequence[str], command: str) -> str:
    """For ``--lr 1e-3``, ``--lr=1e-3`` and ``--bf16``."""
    name, equals, value = argument.lstrip("-").partition("=")
    typed = argument
    if not equals and rest and not rest[0].startswith("-") and "=" not in rest[0]:
        typed, value = f"{argument} {rest[0]}", rest[0]
    if value.endswith(YAML):
        return f"{typed}: {_experiment(value)}"
    if reason := ABSENT.get(name.replace("-", "_")):
        return f"{typed}: no such option: {reason}"
    override = _named(name, value, command)
    if override is None:
        hint = did_you_mean(name, command) or f"; {program.typed(command)} --help lists the settings"
        return f"{typed}: no such option; a setting is typed without dashes, as name=value{hint}"
    return f"{typed}: a setting is typed without dashes: {override}"


def _named(name: str, value: str, command: str) -> str | None:
    """The override for a name, ours or another program's."""
    ours = name.replace("-", "_")
    if ours in reference.names(command) or ours in groups.defaults(command):
        return _option(ours, value, command) or f"{ours}={shell_word(value or '…')}"
    return meant(command, name.rpartition(".")[2], value)


def _experiment(file: str) -> str:
    return f"a file of settings is an option of conf/experiment/: put it there and give experiment={Path(file).stem}"


def _word(word: str, before: Sequence[str], rest: Sequence[str], command: str) -> str:
    """For an argument that is neither a flag nor an override."""
    if not word.strip():
        return "an argument is empty: leave it out"
    if "＝" in word:
        return f"{word}: has a full-width equals sign: {word.replace('＝', '=', 1)}"
    follows = rest[0] if rest and not rest[0].startswith("-") else ""
    if follows.startswith("="):
        value = follows.lstrip("=") or (rest[1] if len(rest) > 1 else "")
        return f"{word} {follows}: there are no spaces around the equals sign: {word}={value}"
    last = before[-1] if before else ""
    if last.endswith("=") or word.startswith("="):
        return f"{last} {word}: there are no spaces around the equals sign: {last.rstrip('=')}={word.lstrip('=')}"
    value = follows if "=" not in follows else ""
    if override := _named(word, value, command):
        return f"{word} {value}".strip() + f": a setting is typed with an equals sign: {override}"
    key, equals, text = last.partition("=")
    kind = kind_of(key.lstrip("+")) if equals else Kind.other
    if kind is Kind.texts:
        return f"{last} {word}: a list is in brackets: {key}={shlex.quote(f'[{text},{word}]')}"
    if command == "infer" and key not in VERBATIM and "prompt=" not in " ".join(before):
        return f"{word}: a setting is typed as name=value; did you mean prompt={shlex.quote(word)}?"
    if kind is not Kind.other:
        return f"{last} {word}: text with spaces is quoted: {key}={shlex.quote(f'{text} {word}')}"
    if word.endswith(YAML):
        return f"{word}: {_experiment(word)}"
    if command == "train" and word.endswith(RECORDS):
        return f"{word}: a file of records is data.train={shell_word(word)}"
    return f"{word}: a setting is typed as name=value{did_you_mean(word, command)}"


def _refuse_override(argument: str, command: str) -> None:
    name, _, value = argument.partition("=")
    name = name.strip()
    if override := meant(command, name, value):
        raise ConfigError(f"{argument}: no such setting; did you mean {override}?")
    if reason := ABSENT.get(name) or (OF_INFER.get(name) if command == "train" else None):
        raise ConfigError(f"{argument}: no such setting: {reason}")
    several = [part.strip() for part in split(value)]
    found = [_option(name, part, command) for part in several]
    if any(found):
        every = [one or f"{name}={part}" for one, part in zip(found, several, strict=True)]
        keys = {one.rpartition("=")[0] for one in every}
        values = ",".join(one.rpartition("=")[2] for one in every)
        override = f"{keys.pop()}={values}" if len(keys) == 1 else next(filter(None, found))
        raise ConfigError(f"{argument}: no such option; did you mean {override}?")


def _option(group: str, value: str, command: str) -> str | None:
    """What a value that is no option of a group was meant as; None if it may be one."""
    options = groups.groups().get(group, [])
    if value in options:
        return None
    if command == "train" and group == "model":
        if "/" in value or value.startswith((".", "~")) or files.is_there(value):
            return f"model=auto model.path={shell_word(value)}"
        return _size(value)
    is_file = "/" in value or value.lower().endswith(RECORDS) or files.is_there(value)
    if command == "train" and group == "data" and is_file:
        return f"data.train={shell_word(value)}"
    return option(group, value)


def _size(value: str) -> str | None:
    """``model=qwen2.5-7b-instruct`` as a family and its size."""
    plain = _letters(re.sub(r"[-_](instruct|chat|base|it)$", "", value.lower()))
    for family in groups.groups()["model"]:
        for name in groups.values("model", family):
            size = name.removeprefix("model.sizes.").rpartition(".")[0]
            if name.startswith("model.sizes.") and plain == _letters(f"{family}{size}"):
                return f"model={family} model.size={size}"
    return None


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9.]", "", text)
