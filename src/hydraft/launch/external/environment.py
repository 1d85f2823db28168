"""Detects from environment variables that another launcher (torchrun, deepspeed, accelerate, srun) started this process.

The run then uses the ranks of that launcher instead of the default ``cluster=1x1``. No torch.
"""

import dataclasses
import os
import re
import shlex
import socket
import subprocess
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from hydraft.config.choices import Launcher
from hydraft.config.cluster import ClusterConfig
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.system import hardware, program

STARTERS = {
    "accelerate": "accelerate launch --multi_gpu --num_machines {nodes} --num_processes {size} {module}",
    "torchrun": "torchrun --nnodes {nodes} --nproc-per-node {ranks} {module}",
    "deepspeed": "deepspeed --num_nodes {nodes} --num_gpus {ranks} {module}",
    "srun": "srun --nodes {nodes} --ntasks-per-node {ranks} {train}",
    "RANK": "torchrun --nnodes {nodes} --node-rank $RANK --nproc-per-node {ranks} --master-addr $MASTER_ADDR "
    "--master-port $MASTER_PORT {module}",
}
"""The command that starts another number of ranks, by launcher; ``{module}``: what it starts in place of a command."""

SLURM_PORTS = range(20_000, 30_000)
"""Ports for the rendezvous of a Slurm step, chosen by its id: below the kernel's ephemeral ports."""

USED = ("nodes", "ranks_per_node", "hang_timeout")
"""Settings of the cluster section that apply under another launcher."""


@dataclass(frozen=True)
class World:
    """The ranks that another launcher started, as seen from one of them."""

    starter: str
    """The launcher: a key of ``STARTERS``."""
    rank: int
    size: int
    """Number of ranks."""
    local_rank: int
    local_size: int
    """Number of ranks on this machine."""
    address: str
    """Address of rank 0's machine."""
    port: int
    """Port of the rendezvous store there."""
    hosts_store: bool = False
    """Whether the launcher hosts the store, as torch's elastic agent does; otherwise rank 0 does."""
    attempt: str = "0"
    """Number of the launcher's restart."""

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return self.size // self.local_size

    def environment(self) -> dict[str, str]:
        """The variables that torch and DeepSpeed read in a rank."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # a rank connects to the store instead of hosting one
            "TORCHELASTIC_RESTART_COUNT": self.attempt,
        }


VARIABLES = re.compile(
    r"(LOCAL_|GROUP_|NODE_|CROSS_)?(RANK|WORLD_SIZE|SIZE)|MASTER_(ADDR|PORT)|(SLURM|TORCHELASTIC)_\w+"
)
"""Variables by which launchers describe ranks."""


def forget_empty(environ: MutableMapping[str, str] = os.environ) -> None:
    """Remove the variables of launchers that are set to nothing (``RANK=``), which libraries would read as numbers."""
    for name in [name for name, value in environ.items() if not value.strip() and VARIABLES.fullmatch(name)]:
        del environ[name]


def detect(environ: Mapping[str, str] = os.environ) -> World | None:
    """The ranks that this process belongs to; None if no other launcher started it.

    Clusters set RANK=0 and WORLD_SIZE=1 in a container that is alone (PyTorchJob of Kubernetes, notebooks). Nothing waits for such a
    rank, so that a run there starts as on any machine.

    Raises:
        ConfigError: variables are missing or contradict each other.
    """
    environ = {name: value for name, value in environ.items() if value.strip()}
    if "RANK" in environ and "WORLD_SIZE" in environ and not _is_alone(environ):
        world = _torch_world(environ)
    elif _number(environ, "SLURM_STEP_NUM_TASKS", 1) > 1 and "SLURM_PROCID" in environ:
        world = _slurm_world(environ)
    else:
        return None
    if not 0 <= world.rank < world.size:
        raise ConfigError(
            f"rank {world.rank} of {world.size}, by {_name(world)}: ranks count from 0 to {world.size - 1}{_unset(world.starter)}"
        )
    if world.size % world.local_size:
        raise ConfigError(
            f"{world.starter} started {world.size} ranks, {world.local_size} of them on this machine: "
            "every machine needs the same number"
        )
    return world


def _is_alone(environ: Mapping[str, str]) -> bool:
    """Whether RANK and WORLD_SIZE are those of a single process that no launcher watches."""
    launched = {"TORCHELASTIC_RUN_ID", "CROSS_SIZE"} & set(environ)
    return not launched and environ["RANK"].strip() == "0" and environ["WORLD_SIZE"].strip() == "1"


def _unset(starter: str) -> str:
    """For variables that may be left over: how a run starts without them."""
    return "; if no launcher started this, type unset RANK WORLD_SIZE first" if starter == "RANK" else ""


def _torch_world(environ: Mapping[str, str]) -> World:
    """From torchrun's variables, which accelerate and (with two other names) deepspeed also set."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in environ:
            raise ConfigError(f"RANK={environ['RANK']} is set, as by a launcher, but {name} is not{_unset('RANK')}")
    local_size = environ.get("LOCAL_WORLD_SIZE") or environ.get("LOCAL_SIZE")
    if local_size is None and "LOCAL_RANK" in environ:
        raise ConfigError(
            f"LOCAL_RANK={environ['LOCAL_RANK']} is set, but LOCAL_WORLD_SIZE (ranks per machine) is not{_unset('RANK')}"
        )
    elastic = "TORCHELASTIC_RUN_ID" in environ
    starter = "torchrun" if elastic else "deepspeed" if "CROSS_SIZE" in environ else "RANK"
    return World(
        starter="accelerate" if elastic and "ACCELERATE_MIXED_PRECISION" in environ else starter,
        rank=_number(environ, "RANK"),
        size=_number(environ, "WORLD_SIZE"),
        local_rank=_number(environ, "LOCAL_RANK", 0),
        local_size=max(1, int(local_size or 1)),
        address=environ["MASTER_ADDR"],
        port=_number(environ, "MASTER_PORT"),
        hosts_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )


def _slurm_world(environ: Mapping[str, str]) -> World:
    """From the variables of a task that srun started; task 0 is on the first machine of the step's list."""
    node = _number(environ, "SLURM_NODEID", 0)
    step = _number(environ, "SLURM_JOB_ID", 0) * 7 + _number(environ, "SLURM_STEP_ID", 0)
    return World(
        starter="srun",
        rank=_number(environ, "SLURM_PROCID"),
        size=_number(environ, "SLURM_STEP_NUM_TASKS"),
        local_rank=_number(environ, "SLURM_LOCALID", 0),
        local_size=_tasks(environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))[node],
        address=environ.get("MASTER_ADDR") or _first_node(environ),
        port=_number(environ, "MASTER_PORT", SLURM_PORTS[step % len(SLURM_PORTS)]),
    )


def _tasks(text: str) -> list[int]:
    """Slurm's ``2(x3),1`` as [2, 2, 2, 1]."""
    counts = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts


def _first_node(environ: Mapping[str, str]) -> str:
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", "localhost")
    name = _scontrol("show", "hostnames", nodes).split()[0]
    try:
        socket.getaddrinfo(name, None)
        return name
    except OSError:  # a name that only Slurm can resolve
        found = re.search(r"NodeAddr=(\S+)", _scontrol("show", "node", name))
        return found[1] if found else name


def _scontrol(*arguments: str) -> str:
    try:
        return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"srun: scontrol could not name the first machine ({error}): set MASTER_ADDR") from None


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise ConfigError(f"{name}={text}: must be a number") from None


def apply(config: Config, world: World | None, explicit: bool) -> Config:
    """``config`` with the ranks of ``world`` as its cluster.

    Args:
        config: as composed.
        world: the ranks that another launcher started; None if none did.
        explicit: whether the command line sets ``cluster`` itself.

    Raises:
        ConfigError: the config needs another number of ranks; the message has the command to type.
    """
    if world is None:
        if config.cluster.launcher is Launcher.joined:
            raise ConfigError(
                "cluster.launcher=joined is set automatically under torchrun, deepspeed, accelerate or srun"
            )
        return config
    _refuse_ignored(config.cluster, world)
    wanted, started = config.cluster, (world.nodes, world.local_size)
    if (wanted.nodes, wanted.ranks_per_node) != started and (explicit or wanted.nodes * wanted.ranks_per_node > 1):
        command = STARTERS[world.starter].format(
            nodes=wanted.nodes,
            ranks=wanted.ranks_per_node,
            size=wanted.nodes * wanted.ranks_per_node,
            train=program.typed("train"),
            module=program.under("--module" if world.starter == "deepspeed" else "-m"),
        )
        raise ConfigError(
            f"cluster={wanted.nodes}x{wanted.ranks_per_node}: {_name(world)} started {started[0]}x{started[1]}: "
            f"use cluster={started[0]}x{started[1]}, or start it with {command} …{_unset(world.starter)}"
        )
    if world.starter == "srun" and 0 < hardware.detect().count < world.local_size:
        raise ConfigError(
            f"srun gave each of the {world.local_size} tasks of a machine only {hardware.detect().count} GPU, and ranks need to "
            "see those of the others too: add --gpu-bind=none to srun"
        )
    cluster = dataclasses.replace(wanted, nodes=started[0], ranks_per_node=started[1], launcher=Launcher.joined)
    return dataclasses.replace(config, cluster=cluster)


def _refuse_ignored(cluster: ClusterConfig, world: World) -> None:
    """Refuse settings that only apply when hydraft itself starts the ranks."""
    default = ClusterConfig()
    for name in (field.name for field in dataclasses.fields(ClusterConfig)):
        if name not in USED and getattr(cluster, name) != getattr(default, name):
            raise ConfigError(
                f"cluster.{name} is for ranks that {program.named('train')} starts itself, and {_name(world)} has started these: "
                f"leave it out, or type {program.typed('train')} … without {_name(world)}"
            )


def _name(world: World) -> str:
    return "a launcher" if world.starter == "RANK" else world.starter


def describe(world: World) -> str:
    """A line that is printed at the start of a run."""
    ranks = f"{world.size} rank{'s' if world.size > 1 else ''}"
    return f"{ranks}, started by {_name(world)}: cluster is {world.nodes}x{world.local_size} in this run"


def sweep_command(arguments: list[str], world: World) -> str:
    """The command to type instead of a sweep under another launcher."""
    kept = [argument for argument in arguments if not argument.startswith("cluster")]
    cluster = [] if world.size == 1 else [f"cluster={world.nodes}x{world.local_size}"]
    return shlex.join([*program.typed("train").split(), *kept, *cluster])
