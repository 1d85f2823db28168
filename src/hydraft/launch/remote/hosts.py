"""The hosts of a run: from ``cluster.hosts``, or from a hostfile in DeepSpeed's format. No torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from hydraft.config.cluster import ClusterConfig, is_here
from hydraft.errors import ConfigError
from hydraft.system import ownership

HOSTFILE = "hostfile"

NAME = re.compile(
    r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?(?:[A-Za-z0-9_][A-Za-z0-9_.:-]*|:[0-9A-Fa-f:.]+)(?:%[A-Za-z0-9_.-]+)?"
)
"""Host names that are safe on ssh's command line: no leading dash, no characters that a shell interprets. An IPv6 address may begin
with colons and end with ``%`` and an interface."""

LINE = re.compile(r"(?P<name>\S+)\s+slots=(?P<slots>\d+)(?P<rest>(?:[\s#].*)?)")
"""A line of a hostfile. As in DeepSpeed (launcher/runner.py, _parse_hostfile), what follows the slots, such as ``max_slots=8``, is not
read."""


@dataclass(frozen=True)
class Host:
    """A machine that runs ranks."""

    name: str
    slots: int | None = None
    """Maximum number of ranks; None if not given."""

    @property
    def is_here(self) -> bool:
        """Whether it is this machine, for which no ssh is needed."""
        return is_here(self.name)


def choose(cluster: ClusterConfig) -> list[Host]:
    """The first ``cluster.nodes`` of the configured hosts.

    Raises:
        ConfigError: there are too few, or a name is not valid.
    """
    if cluster.hosts and cluster.hostfile is not None:
        raise ConfigError("cluster.hosts and cluster.hostfile both list the hosts: use only one of them")
    if cluster.hosts:
        source, found = "cluster.hosts", [Host(_without_brackets(name)) for name in cluster.hosts]
    else:
        file = Path(cluster.hostfile or HOSTFILE).expanduser()
        if cluster.hostfile is None and file.is_file() and (owner := ownership.of_another(file)):
            raise ConfigError(
                f"./{file} belongs to {owner}: to use its hosts give cluster.hostfile={file}, otherwise cluster.hosts=[…]"
            )
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
    """The hosts of a hostfile in DeepSpeed's format: one per line, as ``name slots=N``; a line that begins with ``#`` is a comment.

    Raises:
        ConfigError: it does not exist, is not text, lists no host, or a line is not valid.
    """
    needed = f"{cluster.nodes} lines such as worker-1 slots={cluster.ranks_per_node}, or use cluster.hosts=[worker-1,…]"
    if not file.is_file():
        raise ConfigError(f"cluster.hostfile={file}: no such file; {_shape(cluster)} needs one with {needed}")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"cluster.hostfile={file}: is not UTF-8 text: save it as UTF-8") from None
    hosts = []
    for number, text in enumerate(lines, 1):
        line = text.strip()
        if not line or line.startswith("#"):
            continue
        found = LINE.fullmatch(line)
        if found is None or int(found["slots"]) == 0 or "slots=" in re.sub(r"#.*|max[_-]slots=\S*", "", found["rest"]):
            raise ConfigError(
                f"cluster.hostfile={file}: line {number} must be a name and slots=N, such as worker-1 slots=4"
            )
        hosts.append(Host(_without_brackets(found["name"]), int(found["slots"])))
    if not hosts:
        raise ConfigError(f"cluster.hostfile={file}: lists no host; {_shape(cluster)} needs {needed}")
    return hosts


def _without_brackets(name: str) -> str:
    """``[fd00::1]`` as ssh takes it."""
    return re.sub(r"^(.*@)?\[([^\[\]]*:[^\[\]]*)\]$", r"\1\2", name)


def _shape(cluster: ClusterConfig) -> str:
    return f"cluster={cluster.nodes}x{cluster.ranks_per_node}"
