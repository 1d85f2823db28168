"""``conf/`` of the current folder: a user's own options of config groups, which come before the shipped ones. No torch.

Hydra finds them through the plugin ``hydra_plugins/hydraft_conf``. Whoever can write a file there decides what is run, so all of them
have to be this user's own (docs/security.md).
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from hydraft.errors import ConfigError
from hydraft.system import ownership, wrapping
from hydraft.system.source_tree import ROOT

CONF = ROOT / "conf"
"""The shipped options."""

OWN = "conf"

MOST_NAMES = 5
"""Files that a notice names."""


def own() -> Path | None:
    """The current folder's ``conf/`` as an absolute path; None if there is none, or if it is the shipped one."""
    try:
        found = Path.cwd() / OWN
        return found if found.is_dir() and not found.samefile(CONF) else None
    except OSError:  # the current folder has been removed, or cannot be read
        return None


def folders() -> list[Path]:
    """The folders of options, in the order in which Hydra looks into them."""
    mine = own()
    return [CONF] if mine is None else [mine, CONF]


def refuse_foreign() -> None:
    """Refuse options that somebody else can have put there.

    Raises:
        ConfigError: names the file.
    """
    mine = own()
    for file in _files(mine):
        if doubt := ownership.writable_by_others(file):
            raise ConfigError(
                f"{OWN}/{file.relative_to(mine or file)}: {doubt}, and options decide what is run: work in a folder of your own"
            )


def report_replaced() -> None:
    """Print the shipped files in whose place a user's own are read, such as ``lora/default.yaml``."""
    mine = own()
    names = [file.relative_to(mine or file) for file in _files(mine)]
    if found := [str(name) for name in names if (CONF / name).is_file()]:
        rest = f" and {len(found) - MOST_NAMES} more" if len(found) > MOST_NAMES else ""
        wrapping.say(
            f"notice: {OWN}/ here has {', '.join(found[:MOST_NAMES])}{rest}, in place of the shipped", sys.stderr
        )


def _files(mine: Path | None) -> Iterator[Path]:
    """Files of options, also in folders that are symbolic links."""
    seen: set[str] = set()
    for folder, inner, names in os.walk(mine or "", followlinks=True):
        inner[:] = sorted(name for name in inner if os.path.realpath(Path(folder, name)) not in seen)
        seen.update(os.path.realpath(Path(folder, name)) for name in inner)
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".yaml"))
