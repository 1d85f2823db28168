"""Consistency check of a run's hosts: versions and config are compared before the first step. No torch."""

import hashlib
import os
import socket
from functools import cache

from hydraft.config.schema import Config, saved
from hydraft.errors import ConfigError
from hydraft.system import program
from hydraft.system.files import version_of
from hydraft.system.source_tree import PACKAGE
from hydraft.system.version import __version__

COMPARED = ("torch", "transformers", "peft", "deepspeed")


def canonical(config: Config) -> str:
    """``config`` as the text that ``save_config`` writes; equal configs have equal texts."""
    return saved(config)


def host() -> str:
    """The name of this host in messages."""
    return os.environ.get("HYDRAFT_HOST") or socket.gethostname()


@cache
def about() -> dict[str, str]:
    """Versions of the packages that affect a result; hydraft's with a hash of its files."""
    own = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        own.update(f"{file.relative_to(PACKAGE)}\0".encode() + file.read_bytes())
    known = {"hydraft": f"{__version__}+{own.hexdigest()[:8]}"}
    return known | {name: version_of(name) or "missing" for name in COMPARED}


def of_run(config: Config) -> dict[str, str]:
    """``about``, and a hash of the config that this rank has read."""
    return {**about(), "config.yaml": hashlib.sha256(canonical(config).encode()).hexdigest()[:12]}


def check(hosts: list[tuple[str, dict[str, str]]]) -> None:
    """Compare every host with the first.

    Args:
        hosts: the name of each, and what ``about`` or ``of_run`` returned there.

    Raises:
        ConfigError: names the difference and the hosts.
    """
    first, expected = hosts[0]
    for name, found in hosts[1:]:
        wrong = [key for key in expected if found.get(key) != expected[key]]
        if wrong:
            differences = "; ".join(
                f"{key} is {expected[key]} on {first} and {found.get(key)} on {name}" for key in wrong
            )
            raise ConfigError(
                f"{differences}: all hosts need the same ({program.set_up()}, from the same {program.SOURCE})"
            )
