"""The hosts of a run: from ``cluster.hosts``, or from a hostfile in DeepSpeed's format. No torch."""

import re
import socket
from dataclasses import dataclass
from pathlib import Path

from hydraft.config.cluster import ClusterConfig
from hydraft.errors import ConfigError

HOSTFILE = "hostfile"

NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_][A-Za-z0-9_.:-]*")
"""Host names that are safe on ssh's command line: no leading dash, no characters that a shell interprets."""


@dataclass(frozen=True)
class Host:
    """A machine that runs ranks."""

    name: str
    slots: int | None = None
    """Maximum number of ranks; None if not given."""

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, for which no ssh is needed."""
        return self.name in ("localhost", "127.0.0.1", socket.gethostname())


def choose(cluster: ClusterConfig) -> list[Host]:
    """The first ``cluster.nodes`` of the configured hosts.

    Raises:
        ConfigError: there are too few, or a name is not valid.
    """
    if cluster.hosts and cluster.hostfile is not None:
        raise ConfigError("cluster.hosts and cluster.hostfile both list the hosts: use only one of them")
    if cluster.hosts:
        source, found = "cluster.hosts", [Host(name) for name in cluster.hosts]
    else:
        file = Path(cluster.hostfile or HOSTFILE).expanduser()
        source, found = f"cluster.hostfile={file}", read(file, cluster)
    for host in found:
        if NAME.fullmatch(host.name) is None:
            raise ConfigError(
                f"{source}: {host.name!r} is not a valid host name; it must be a name or an address that ssh accepts"
            )
    names = [host.name for host in found if not host.is_here]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(f"{source}: {repeated[0]} is listed twice; only localhost may be")
    if len(found) < cluster.nodes:
        raise ConfigError(
            f"{source}: lists {len(found)} of the {cluster.nodes} hosts that {_shape(cluster)} needs: add hosts, "
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
    """The hosts of a hostfile: one per line, as ``name slots=N``; ``#`` begins a comment.

    Raises:
        ConfigError: it does not exist, or a line is not valid.
    """
    if not file.is_file():
        raise ConfigError(
            f"cluster.hostfile={file}: no such file; {_shape(cluster)} needs one with {cluster.nodes} lines such as "
            f"worker-1 slots={cluster.ranks_per_node}, or use cluster.hosts=[worker-1,…]"
        )
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
