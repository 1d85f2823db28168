"""Whether all hosts of a run have the same code: versions and the config are compared before a step is made. No torch."""

import hashlib
import os
import socket
from functools import cache

from hydraft.config.schema import Config, saved
from hydraft.errors import ConfigError
from hydraft.system.files import version_of
from hydraft.system.source_tree import PACKAGE
from hydraft.system.version import __version__

COMPARED = ("torch", "transformers", "peft", "deepspeed")


def canonical(config: Config) -> str:
    """``config`` as the text that ``save_config`` writes: two that are equal have the same."""
    return saved(config)


def host() -> str:
    """This host as a person calls it."""
    return os.environ.get("HYDRAFT_HOST") or socket.gethostname()


@cache
def about() -> dict[str, str]:
    """Versions of what makes a result, hydraft's with a hash of its files."""
    own = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        own.update(f"{file.relative_to(PACKAGE)}\0".encode() + file.read_bytes())
    known = {"hydraft": f"{__version__}+{own.hexdigest()[:8]}"}
    return known | {name: version_of(name) or "missing" for name in COMPARED}


def of_run(config: Config) -> dict[str, str]:
    """``about``, and the hash of the config that this rank has read."""
    return {**about(), "config.yaml": hashlib.sha256(canonical(config).encode()).hexdigest()[:12]}


def check(hosts: list[tuple[str, dict[str, str]]]) -> None:
    """Compare every host with the first.

    Args:
        hosts: the name of each and what ``about`` or ``of_run`` said there.

    Raises:
        ConfigError: names what differs, the hosts and their versions.
    """
    first, expected = hosts[0]
    for name, found in hosts[1:]:
        wrong = [key for key in expected if found.get(key) != expected[key]]
        if wrong:
            told = "; ".join(f"{key} is {expected[key]} on {first} and {found.get(key)} on {name}" for key in wrong)
            raise ConfigError(f"{told}: every host needs the same (make setup there, from the same working copy)")
