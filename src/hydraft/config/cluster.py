"""The cluster section of the schema; ``config.py`` has the others. No torch here."""

from dataclasses import dataclass, field

from hydraft.config.choices import Launcher


@dataclass
class SlurmConfig:
    """What Slurm is asked for; inside an allocation that is there already, only ``setup`` counts."""

    partition: str | None = None
    """Null for the cluster's default."""
    account: str | None = None
    """Who pays; null for the user's default."""
    time: str | None = None
    """Limit, as Slurm writes it: ``30`` (minutes), ``04:00:00``, ``1-12:00:00``; null for the partition's."""
    gres: str | None = None
    """What each machine needs, such as ``gpu:a100:4``; null for a GPU a rank where the partition has any."""
    cpus_per_rank: int | None = None
    """Cores; null takes whole machines (``--exclusive``)."""
    options: dict[str, str | None] = field(default_factory=dict)
    """Further options of sbatch by their long names: ``+cluster.slurm.options.mem=200G``; null for one that takes no value."""
    setup: list[str] = field(default_factory=list)
    """Shell lines that a machine runs before anything else, such as ``module load cuda``."""


@dataclass
class ClusterConfig:
    """The machines of a run, and what reaches them."""

    nodes: int = 1
    """Machines."""
    ranks_per_node: int = 1
    """Processes a machine, one a GPU."""
    gpu_memory: str | None = None
    """Memory of a card, such as ``24GiB``, for ``mode=plan`` on a machine without it; null for the cards that are here."""
    launcher: Launcher = Launcher.auto
    """``auto``: here, or over ssh where hosts are named; ``slurm``; ``joined`` is what torchrun and the like make of it."""
    hosts: list[str] = field(default_factory=list)
    """Names that ssh takes, the machine of rank 0 first; ``localhost`` is this one and may stand twice."""
    hostfile: str | None = None
    """A file of lines ``worker-1 slots=4``; null for ./hostfile, where more than one machine is asked for."""
    address: str | None = None
    """The first host's, as the others reach it; null for one that all of them reach."""
    port: int | None = None
    """Where ranks meet on the first host; null for any free port."""
    python: str | None = None
    """The interpreter on every host; null for the path of this one."""
    workdir: str | None = None
    """The project's folder on every host; null for the path of this one."""
    ssh_config: str | None = None
    """A file in place of ~/.ssh/config."""
    env: list[str] = field(default_factory=list)
    """Names of further environment variables that reach every host; their values are saved nowhere."""
    link_timeout: float = 10
    """Seconds of silence after which a host, or for a host this machine, counts as gone."""
    hang_timeout: float = 600
    """Seconds after which a run none of whose ranks gets on is ended; above the longest step."""
    max_restarts: int = 0
    """How often a run whose rank or host failed begins again, from its newest whole checkpoint."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """For ``launcher=slurm``."""

    @property
    def on_hosts(self) -> bool:
        """Whether the ranks start through agents on named hosts, over ssh."""
        named = self.nodes > 1 or bool(self.hosts) or self.hostfile is not None
        return self.launcher is Launcher.auto and named
