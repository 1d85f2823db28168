"""What a launcher and its agents say to each other: JSON, a line each, on the agent's stdin and stdout. No torch here.

The launcher's first line is the job. After it come commands, ``{"do": …}``, which name no node, so that one stream may
feed many agents (srun copies its stdin to each):

* ``beat``, every second: silence for ``link_timeout`` seconds, or the end of the stream, ends the agent and all below it
* ``reach``, ``port``, ``addresses``: can the first node be reached there?
* ``go``, ``endpoint``: start the ranks
* ``dump``: let every rank write its Python stack to its log, and tell where it stands
* ``finish``, ``signal``: let the ranks save and leave, as if that signal had reached them
* ``stop``: end the ranks at once

An agent answers in events, ``{"event": …, "node": N}``:

* ``hello``, ``about`` (versions), ``shared`` (whether it sees the launcher's run folder), ``folder`` (its own)
* ``say``, ``text``: a line for the screen
* ``ready``, ``addresses``, ``port``: model and ops are there; the last two come from the first node
* ``reached``, ``addresses``: those of ``reach`` where the first node answered
* ``status``, ``ranks``: every second, from the beginning; of each rank its process's ``state`` and its last step's ``age``
* ``screen``, ``data``: bytes for the terminal, from rank 0
* ``stacks``, ``ranks``: the answer to ``dump``
* ``file``, ``name``, ``data``: a piece of a file of its folder, for the launcher's, where that is another
* ``piece``, ``data``, ``last``: part of an event that is too long for srun
* ``failed``, ``kind``, ``rank``, ``cause``; or ``done``: its last word. ``kind``: config, asked (a signal ended
  the ranks at once: ``signal``), killed, raised, hung or stopped. Ranks that left early are done, with ``step`` and ``signal``
"""

import base64
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Self

FORWARDED = (
    "NCCL_*", "CUDA_*", "HF_*", "HUGGING*", "WANDB_*", "GLOO_*", "TORCH*", "PYTORCH_*", "OMP_*", "HYDRAFT_*", "PYTHON*",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "TERM", "COLORTERM",
)  # fmt: skip
"""Names of the variables that reach every host; ``cluster.env`` adds to them."""

KEPT_HERE = ("TORCHELASTIC_*", "TORCH_EXTENSIONS_DIR", "HYDRAFT_HOST")
"""Names among them that mean this process, or this machine."""


SRUN_LINE = 1000
"""Bytes of a line on its way through srun, whose messages hold 1024."""


@dataclass(frozen=True)
class Job:
    """All that an agent needs; it travels on stdin, where no process list shows it."""

    hosts: list[str]
    """Every host's name, as a person wrote it; rank 0 is on the first. One may stand twice."""
    ranks: int
    """Ranks a host."""
    config: str
    """The resolved config, as YAML."""
    folder: str
    """The run's folder on the launcher's machine."""
    token: str
    """What ``.launch`` in that folder holds: who reads the same there shares the file system."""
    cwd: str
    """Where relative paths of the config start, if it is there; else the project's folder."""
    node: int | None = None
    """Which of ``hosts`` this is; None: Slurm says it (``SLURM_NODEID``)."""
    address: str | None = None
    """Of the first host, as the others reach it; None: one that all of them reach is found."""
    port: int | None = None
    """On the first host; None: any that is free."""
    link_timeout: float = 10
    """Seconds of silence after which the other side counts as gone."""
    grace: float = 0
    """Seconds that ranks get to save when a signal asks for an early end; 0 for none."""
    terminal: list[int] | None = None
    """Columns and lines of the launcher's terminal; None where it has none, and rank 0 shows plain lines."""
    quiet: bool = False
    """Nothing of rank 0 is shown."""
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    """Variables set before anything is started; they may hold secrets, so nothing writes them anywhere."""

    def to_line(self) -> bytes:
        """The job as the first line of an agent's stdin."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """What ``to_line`` wrote.

        Raises:
            ValueError: the line is no job of this version; the message keeps its contents to itself.
        """
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError):
            raise ValueError("the launcher's first line is no job: is its version of hydraft another?") from None

    @property
    def here(self) -> int:
        """This agent's place in ``hosts``."""
        return int(os.environ["SLURM_NODEID"]) if self.node is None else self.node


def forwarded(environment: Mapping[str, str], more: Iterable[str] = ()) -> dict[str, str]:
    """The variables of ``environment`` that reach every host: ``FORWARDED``, and the names in ``more``."""
    named = set(more)
    return {
        name: value
        for name, value in environment.items()
        if name in named
        or (
            any(fnmatchcase(name, pattern) for pattern in FORWARDED)
            and not any(fnmatchcase(name, pattern) for pattern in KEPT_HERE)
        )
    }


def line(**message: Any) -> bytes:
    """A command or an event; ``bytes`` in it travel as base64."""
    return json.dumps(message, default=lambda raw: base64.b64encode(raw).decode()).encode() + b"\n"


def pieces(raw: bytes, node: int) -> bytes:
    """A line cut into lines that srun passes on whole, of which it mixes longer ones with other tasks'.

    Each is an event ``piece``; a node's pieces come in order, and the one with ``last`` makes the line whole.
    """
    if len(raw) <= SRUN_LINE:
        return raw
    cut = [raw[start : start + SRUN_LINE // 2] for start in range(0, len(raw), SRUN_LINE // 2)]
    return b"".join(line(event="piece", node=node, data=part, last=part is cut[-1]) for part in cut)
