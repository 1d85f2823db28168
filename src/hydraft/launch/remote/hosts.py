"""Which machines a run takes: from ``cluster.hosts``, or a hostfile as DeepSpeed has it. No torch here."""

import re
import socket
from dataclasses import dataclass
from pathlib import Path

from hydraft.config.cluster import ClusterConfig
from hydraft.errors import ConfigError

HOSTFILE = "hostfile"

NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_][A-Za-z0-9_.:-]*")
"""What may reach ssh's command line: no leading dash, nothing that a shell reads."""


@dataclass(frozen=True)
class Host:
    """A machine that takes ranks."""

    name: str
    slots: int | None = None
    """Ranks it takes at most; None where no one said."""

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, which is reached without ssh."""
        return self.name in ("localhost", "127.0.0.1", socket.gethostname())


def choose(cluster: ClusterConfig) -> list[Host]:
    """The first ``cluster.nodes`` of the hosts that were named.

    Raises:
        ConfigError: there are too few, or of a form that no host has.
    """
    if cluster.hosts and cluster.hostfile is not None:
        raise ConfigError("cluster.hosts and cluster.hostfile name the machines twice: use one of them")
    if cluster.hosts:
        source, found = "cluster.hosts", [Host(name) for name in cluster.hosts]
    else:
        file = Path(cluster.hostfile or HOSTFILE).expanduser()
        source, found = f"cluster.hostfile={file}", read(file, cluster)
    for host in found:
        if NAME.fullmatch(host.name) is None:
            raise ConfigError(
                f"{source}: {host.name!r} is no host's name; it must be a name or an address that ssh takes"
            )
    names = [host.name for host in found if not host.is_here]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{source}: {twice[0]} stands twice; only localhost may")
    if len(found) < cluster.nodes:
        raise ConfigError(
            f"{source}: names {len(found)} of the {cluster.nodes} machines that {_shape(cluster)} needs: add some, "
            f"or use cluster.nodes={len(found)}"
        )
    chosen = found[: cluster.nodes]
    for host in chosen:
        if host.slots is not None and host.slots < cluster.ranks_per_node:
            raise ConfigError(
                f"{source}: {host.name} has slots={host.slots} and {_shape(cluster)} needs {cluster.ranks_per_node}: "
                f"use cluster.ranks_per_node={host.slots}"
            )
    return chosen


def read(file: Path, cluster: ClusterConfig) -> list[Host]:
    """The hosts of a hostfile: a line each, ``name slots=N``; ``#`` begins a comment.

    Raises:
        ConfigError: it is not there, or a line has another form.
    """
    if not file.is_file():
        asked = f"cluster.hostfile={file}: no such file"
        wanted = (
            f"; {_shape(cluster)} needs one with {cluster.nodes} lines such as worker-1 slots={cluster.ranks_per_node}"
        )
        raise ConfigError(f"{asked}{wanted}, or use cluster.hosts=[worker-1,…]")
    hosts = []
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        words = text.partition("#")[0].split()
        if not words:
            continue
        slots = re.fullmatch(r"slots=([1-9]\d*)", words[1]) if len(words) == 2 else None
        if slots is None:
            raise ConfigError(
                f"cluster.hostfile={file}: line {number} must be a name and slots=N, such as worker-1 slots=4"
            )
        hosts.append(Host(words[0], int(slots[1])))
    return hosts


def _shape(cluster: ClusterConfig) -> str:
    return f"cluster={cluster.nodes}x{cluster.ranks_per_node}"
