"""What another launcher (torchrun, deepspeed, accelerate, srun) says to the process it started: which rank, of how many, where.

Read from the environment; a run then has the ranks that are there, whatever ``cluster`` says by default. No torch here.
"""

import dataclasses
import os
import re
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from hydraft.config.choices import Launcher
from hydraft.config.cluster import ClusterConfig
from hydraft.config.schema import Config
from hydraft.errors import ConfigError
from hydraft.system import hardware

STARTERS = {
    "accelerate": "accelerate launch --multi_gpu --num_machines {nodes} --num_processes {size} train.py",
    "torchrun": "torchrun --nnodes {nodes} --nproc-per-node {ranks} train.py",
    "deepspeed": "deepspeed --num_nodes {nodes} --num_gpus {ranks} train.py",
    "srun": "srun --nodes {nodes} --ntasks-per-node {ranks} python train.py",
    "RANK": "RANK=… LOCAL_RANK=… WORLD_SIZE={size} LOCAL_WORLD_SIZE={ranks} python train.py",
}
"""How each is told another number of ranks."""

SLURM_PORTS = range(20_000, 30_000)
"""Where a step's rendezvous lies, by its id: below the ports that the kernel hands out."""


USED = ("nodes", "ranks_per_node", "hang_timeout")
"""Of the cluster section, where another launcher started the ranks."""


@dataclass(frozen=True)
class World:
    """The ranks that a launcher started, as one of them sees it."""

    starter: str
    """Who: a key of ``STARTERS``."""
    rank: int
    size: int
    """Ranks in all."""
    local_rank: int
    local_size: int
    """Ranks on this machine."""
    address: str
    """Of the machine of rank 0."""
    port: int
    """There: of the store where ranks meet."""
    kept: bool = False
    """The launcher keeps that store (torch's elastic agent does); otherwise rank 0 does."""
    attempt: str = "0"
    """Counts the launcher's restarts."""

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.size // self.local_size

    def environment(self) -> dict[str, str]:
        """What torch and DeepSpeed read in a rank."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # a rank joins the store, whoever keeps it
            "TORCHELASTIC_RESTART_COUNT": self.attempt,
        }


def find(environ: Mapping[str, str] = os.environ) -> World | None:
    """The world that this process was started into; None where a person started it.

    Raises:
        ConfigError: a launcher said too little, or what cannot be.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        world = _torch_world(environ)
    elif _number(environ, "SLURM_STEP_NUM_TASKS", 1) > 1 and "SLURM_PROCID" in environ:
        world = _slurm_world(environ)
    else:
        return None
    if world.size % world.local_size or not 0 <= world.rank < world.size:
        raise ConfigError(
            f"{world.starter} started {world.size} ranks, {world.local_size} of them on this machine: "
            "every machine needs the same number"
        )
    return world


def _torch_world(environ: Mapping[str, str]) -> World:
    """torchrun's variables, which accelerate and (with two other names) deepspeed share."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in environ:
            raise ConfigError(f"RANK={environ['RANK']} says that a launcher started this, but {name} is not set")
    local_size = environ.get("LOCAL_WORLD_SIZE") or environ.get("LOCAL_SIZE")
    if local_size is None and "LOCAL_RANK" in environ:
        raise ConfigError(f"LOCAL_RANK={environ['LOCAL_RANK']} is set, but LOCAL_WORLD_SIZE (ranks a machine) is not")
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
        kept=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=environ.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )


def _slurm_world(environ: Mapping[str, str]) -> World:
    """One task of a step that srun started; task 0 is on the first machine of the step's list."""
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
    except OSError:  # a name that only Slurm knows
        found = re.search(r"NodeAddr=(\S+)", _scontrol("show", "node", name))
        return found[1] if found else name


def _scontrol(*words: str) -> str:
    try:
        return subprocess.run(["scontrol", *words], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(
            f"srun: scontrol does not say which machine is the first ({error}): set MASTER_ADDR"
        ) from None


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise ConfigError(f"{name}={text}: a launcher sets it to a number") from None


def place(config: Config, world: World | None, named: bool) -> Config:
    """``config`` on the ranks that are there, in place of the default ``cluster=1x1``.

    ``named``: the command line says something about ``cluster`` itself.

    Raises:
        ConfigError: another number of ranks was asked for; the message has the command to type.
    """
    if world is None:
        if config.cluster.launcher is Launcher.joined:
            raise ConfigError(
                "cluster.launcher=joined is for ranks that torchrun, deepspeed, accelerate or srun starts"
            )
        return config
    _refuse_ignored(config.cluster, world)
    asked, there = config.cluster, (world.nodes, world.local_size)
    if (asked.nodes, asked.ranks_per_node) != there and (named or asked.nodes * asked.ranks_per_node > 1):
        command = STARTERS[world.starter].format(
            nodes=asked.nodes, ranks=asked.ranks_per_node, size=asked.nodes * asked.ranks_per_node
        )
        raise ConfigError(
            f"cluster={asked.nodes}x{asked.ranks_per_node}: {_who(world)} started {there[0]}x{there[1]}: "
            f"say cluster={there[0]}x{there[1]}, or start it with {command} …"
        )
    if world.starter == "srun" and 0 < hardware.detect().count < world.local_size:
        raise ConfigError(
            f"srun gave each of the {world.local_size} tasks of a machine {hardware.detect().count} GPU of its own, and ranks need to "
            "see one another's: add --gpu-bind=none to srun"
        )
    cluster = dataclasses.replace(asked, nodes=there[0], ranks_per_node=there[1], launcher=Launcher.joined)
    return dataclasses.replace(config, cluster=cluster)


def _refuse_ignored(asked: ClusterConfig, world: World) -> None:
    """What says how hydraft itself is to start ranks has no meaning where they are there."""
    default = ClusterConfig()
    for name in (field.name for field in dataclasses.fields(ClusterConfig)):
        if name not in USED and getattr(asked, name) != getattr(default, name):
            raise ConfigError(
                f"cluster.{name} is for ranks that train.py starts itself, and {_who(world)} has started these: "
                f"leave it away, or type python train.py … without {_who(world)}"
            )


def _who(world: World) -> str:
    return "a launcher" if world.starter == "RANK" else world.starter


def say(world: World) -> str:
    """A line for the head of a run."""
    ranks = f"{world.size} rank{'s' if world.size > 1 else ''}"
    return f"{ranks}, started by {_who(world)}: cluster is {world.nodes}x{world.local_size} in this run"


def sweep_command(arguments: list[str], world: World) -> str:
    """What to type in place of a sweep under another launcher."""
    kept = [word for word in arguments if not word.startswith("cluster")]
    cluster = [] if world.size == 1 else [f"cluster={world.nodes}x{world.local_size}"]
    return " ".join(["python train.py", *kept, *cluster])
