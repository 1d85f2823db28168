"""``hydraft settings``: docs/configuration.md, with ``zh`` docs/zh/configuration.md, made from the schema. No torch.

The Chinese texts are in docs/zh/settings.yaml.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from omegaconf import OmegaConf

from hydraft.config import reference
from hydraft.config.reference import REQUIRED, Section, Setting
from hydraft.errors import EXIT_REFUSED
from hydraft.system.source_tree import ROOT

TRANSLATIONS = ROOT / "docs" / "zh" / "settings.yaml"
COMMANDS = {"train": "train.py", "infer": "infer.py"}

INTRODUCTION = """\
# Configuration

[中文](zh/configuration.md) · [README](../README.md)

Every setting of `train.py` and `infer.py`. This page is generated: `hydraft settings > docs/configuration.md`.

A setting is given as `name=value` on the command line, for example `train.learning_rate=1e-4`. The default is that of the schema;
where the default option of a config group sets another value, that value and the option follow it. The options of the groups, and
when to choose which, are in [conf/README.md](../conf/README.md). `python train.py --help train.loss_spike` explains one setting,
`--help train` a section, and `--help lora` also the options of a config group.
"""


@dataclass(frozen=True)
class Texts:
    """The words of the page in one language."""

    introduction: str = INTRODUCTION
    columns: tuple[str, ...] = ("setting", "default", "unit", "allowed", "meaning")
    general: str = "general"
    """Heading of the settings that are in no section."""
    translations: dict[str, str] | None = None
    """By English text, or by name of the setting; None for English."""
    missing: list[str] = field(default_factory=list)
    """Texts that have no translation."""

    def of(self, key: str, english: str) -> str:
        """The text of a setting or section named ``key``, or of a unit or bound, whose key is the English text."""
        if self.translations is None or not english:
            return english
        if key not in self.translations:
            self.missing.append(key)
        return self.translations.get(key, english)


def page(texts: Texts) -> str:
    """The whole page."""
    return "\n".join(line for part in _parts(texts) for line in part)


def _parts(texts: Texts) -> Iterator[list[str]]:
    yield [texts.introduction]
    for command, file in COMMANDS.items():
        options = reference.option_defaults(command)
        yield [f"## {file}", ""]
        for section in reference.sections(command):
            yield list(_table(command, section, options, texts))


def _table(command: str, section: Section, options: dict[str, tuple[str, str]], texts: Texts) -> Iterator[str]:
    key = f"{command}.py" if not section.name else section.name
    yield f"### {f'`{section.name}`' if section.name else texts.general}"
    yield ""
    yield f"{_code(texts.of(_key(command, key), section.meaning))}"
    yield ""
    yield f"| {' | '.join(texts.columns)} |"
    yield f"|{'---|' * len(texts.columns)}"
    for setting in section.settings:
        cells = (
            f"`{setting.name}`", _default(setting, options.get(setting.name), texts),
            texts.of(setting.unit, setting.unit),
            _allowed(setting, texts), texts.of(_key(command, setting.name), setting.meaning),
        )  # fmt: skip
        yield f"| {' | '.join(_code(cell).replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _key(command: str, name: str) -> str:
    """infer.py's own meaning of a name that train.py has too."""
    return name if command == "train" else f"infer {name}"


def _default(setting: Setting, option: tuple[str, str] | None, texts: Texts) -> str:
    default = texts.of(REQUIRED, REQUIRED) if setting.default == REQUIRED else f"`{setting.default}`"
    return default if option is None else f"{default}; `{option[0]}` (`{option[1]}`)"


def _allowed(setting: Setting, texts: Texts) -> str:
    allowed = setting.allowed
    return texts.of(allowed, allowed) if re.search(r"[a-z]{3}", re.sub("`.*?`", "", allowed)) else allowed


def _code(text: str) -> str:
    return text.replace("``", "`")


def chinese() -> Texts:
    """The Chinese texts."""
    known = OmegaConf.to_container(OmegaConf.load(TRANSLATIONS), resolve=False)
    assert isinstance(known, dict)
    translations = {str(key): str(text) for key, text in {**known["texts"], **known["settings"]}.items()}
    return Texts(known["introduction"], tuple(known["columns"]), known["general"], translations)


def main(arguments: list[str]) -> int:
    """Print the page; ``zh`` for the Chinese one."""
    if arguments not in ([], ["zh"]):
        print(
            f"hydraft settings: {' '.join(arguments)}: the only argument is zh, for the page in Chinese",
            file=sys.stderr,
        )
        return EXIT_REFUSED
    print(page(chinese() if arguments else Texts()), end="")
    return 0
