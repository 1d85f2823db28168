"""Schema of the ``cluster`` section: machines, ranks, launcher and timeouts. No torch."""

import re
import socket
from dataclasses import dataclass, field

from hydraft.config.bounds import Effect, setting
from hydraft.config.choices import Launcher

HERE = ("localhost", "127.0.0.1", "::1")
"""Names of this machine besides its own."""


def is_here(host: str) -> bool:
    """Whether a host is this machine, for which no ssh is needed."""
    return host in (*HERE, socket.gethostname())


def _are_sbatch_options(options: dict[str, str | None]) -> bool:
    return all(re.fullmatch(r"[a-z-]+", name) and "\n" not in str(value) for name, value in options.items())


@dataclass
class SlurmConfig:
    """What is requested from Slurm. Inside an existing allocation only ``setup`` is read."""

    partition: str | None = setting(None, effect=Effect.acts)
    """Partition. null: the cluster's default."""
    account: str | None = setting(None, effect=Effect.acts)
    """Account that is charged. null: the user's default."""
    time: str | None = setting(None, effect=Effect.acts)
    """Time limit in Slurm's notation: ``30`` (minutes), ``04:00:00``, ``1-12:00:00``. null: the partition's."""
    gres: str | None = setting(None, effect=Effect.acts)
    """Resources of each machine, such as ``gpu:a100:4``. null: one GPU per rank if the partition has GPUs."""
    cpus_per_rank: int | None = setting(None, at_least=1, unit="cores", hint=", or null for whole machines")
    """Cores of each rank. null: whole machines (``--exclusive``)."""
    options: dict[str, str | None] = setting(
        factory=dict,
        valid=_are_sbatch_options,
        allowed="long names of sbatch's options and values",
        hint=", such as +cluster.slurm.options.mem=200G",
        effect=Effect.acts,
    )
    """Other options of sbatch by their long names: ``+cluster.slurm.options.mem=200G``; null for an option without a value."""
    setup: list[str] = setting(factory=list, effect=Effect.acts)
    """Shell commands that each machine runs first, such as ``module load cuda``."""


@dataclass
class ClusterConfig:
    """The machines of a run and how they are reached."""

    nodes: int = setting(1, at_least=1, unit="machines")
    """Number of machines."""
    ranks_per_node: int = setting(1, at_least=1, unit="ranks")
    """Ranks (processes) on each machine, one per GPU."""
    gpu_memory: str | None = None
    """Memory of a GPU, such as ``24GiB``, for ``mode=plan`` on a machine without such GPUs. null: the GPUs of this machine."""
    launcher: Launcher = setting(Launcher.auto, effect=Effect.acts)
    """``auto``: on this machine, or over ssh if hosts are given. ``slurm``: as a Slurm job. ``joined``: set by the program itself when
    torchrun, deepspeed, accelerate or srun started it."""
    hosts: list[str] = setting(factory=list, effect=Effect.acts)
    """Host names for ssh, the machine of rank 0 first. ``localhost`` is this machine and may be given twice."""
    hostfile: str | None = setting(None, effect=Effect.acts)
    """A file of lines ``worker-1 slots=4``. null: ./hostfile, if there is more than one machine."""
    address: str | None = setting(None, effect=Effect.acts)
    """Address of the first host. null: one that all other hosts can reach is found."""
    port: int | None = setting(None, at_least=1, at_most=65535, hint=", or null for any free port")
    """Port of the rendezvous on the first host. null: any free port."""
    python: str | None = setting(None, effect=Effect.acts)
    """Path of the Python interpreter on every host. null: the same as on this machine."""
    workdir: str | None = setting(None, effect=Effect.acts)
    """Path of the project on every host. null: the same as on this machine."""
    ssh_config: str | None = setting(None, effect=Effect.acts)
    """Configuration file of ssh. null: ~/.ssh/config."""
    env: list[str] = setting(factory=list, effect=Effect.acts)
    """Names of other environment variables to pass to every host. Their values are not saved."""
    link_timeout: float = setting(
        10, at_least=3, at_most=86_400, unit="seconds", hint="; hosts send a message every second"
    )
    """Time without a message after which the connection to a host counts as lost."""
    hang_timeout: float = setting(
        600, above=0, at_most=31_536_000, unit="seconds", hint=", and longer than the longest step"
    )
    """Time without progress on any rank after which the run is ended. It must be longer than the longest step."""
    max_restarts: int = setting(0, at_least=0, unit="restarts")
    """How often a run restarts from its newest complete checkpoint after a rank or a host failed."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    @property
    def hosts_here(self) -> int:
        """How many of the run's hosts are this machine: more than one in a trial of several hosts."""
        return sum(map(is_here, self.hosts[: self.nodes]))

    @property
    def ranks_here(self) -> int:
        """The most ranks that share a machine, and its memory."""
        return self.ranks_per_node * max(1, self.hosts_here)

    @property
    def on_hosts(self) -> bool:
        """Whether the ranks start through agents on named hosts, over ssh."""
        named = self.nodes > 1 or bool(self.hosts) or self.hostfile is not None
        return self.launcher is Launcher.auto and named
