"""The folder of a sweep: a new one below multirun/, or that of a sweep to resume. No torch."""

import re
from pathlib import Path

from omegaconf import DictConfig

from hydraft.config import printed
from hydraft.config.choices import Mode
from hydraft.errors import ConfigError
from hydraft.runs import claim
from hydraft.sweep.folder_names import UNSAFE
from hydraft.sweep.results.ledger import ABOUT, FILE, refuse_others

ROOT = Path("multirun")


def folder_of(config: DictConfig) -> Path:
    """The folder of the sweep with this ``config`` (Hydra's section included).

    Raises:
        ConfigError: it is used already, does not exist, or is given twice.
    """
    name, resumed = config.sweep.name, config.sweep.resume
    given = [override for override in config.hydra.overrides.hydra if re.match(r"\W*hydra\.sweep\.dir=", override)]
    for setting, value in (("sweep.name", name), ("sweep.resume", resumed)):
        if value is not None and given:
            raise ConfigError(f"{setting}={value} and {given[0]} both name the sweep's folder: leave one of them out")
    if resumed is not None:
        if name is not None:
            raise ConfigError(
                f"sweep.name={name}: sweep.resume={resumed} resumes a sweep, which has a name: leave it out"
            )
        return find(str(resumed))
    if name is not None and (UNSAFE.search(str(name)) or str(name).strip(" .") != str(name) or not str(name)):
        raise ConfigError(f"sweep.name={name}: must be the name of a folder, without any of / \\ : * ? < > |")
    folder = Path(str(config.hydra.sweep.dir)) if name is None else ROOT / str(name)
    if (folder / ABOUT).exists():
        raise ConfigError(
            f"{folder}: a sweep is in it already: resume it with {printed.override('sweep.resume', name or folder)}, or give another name"
        )
    if config.mode is Mode.train:
        setting, typed = ("hydra.sweep.dir", str(config.hydra.sweep.dir)) if name is None else ("sweep.name", str(name))
        claim.refuse_place(folder.absolute(), typed, setting)
        refuse_others(folder, f"{setting}={typed}")
    return folder


def name_of(folder: Path) -> str:
    """The value for ``sweep.resume``."""
    try:
        return str(folder.relative_to(ROOT))
    except ValueError:
        return str(folder)


def find(name: str) -> Path:
    """The folder of a sweep by its name or path; ``last`` for the one with the newest event.

    Raises:
        ConfigError: there is no such sweep.
    """
    known = sorted([*ROOT.glob(f"*/{ABOUT}"), *ROOT.glob(f"*/*/{ABOUT}")], key=lambda about: _moved(about.parent))
    if name == "last":
        if not known:
            raise ConfigError("sweep.resume=last: no sweep below multirun/")
        return known[-1].parent
    for folder in (ROOT / name, Path(name)):
        if (folder / ABOUT).exists():
            return folder
    there = ", ".join(str(about.parent.relative_to(ROOT)) for about in known[-5:]) or "none"
    raise ConfigError(f"sweep.resume={name}: no such sweep (no {ABOUT} there); below multirun/ there are: {there}")


def _moved(folder: Path) -> float:
    file = folder / FILE
    return (file if file.exists() else folder / ABOUT).stat().st_mtime
