"""Messages between a launcher and its agents: JSON, one line each, on the agent's stdin and stdout. No torch.

The launcher's first line is a ``LaunchSpec``. After it come commands, ``{"do": …}``, which name no node, so that one stream can
serve many agents (srun copies its stdin to each task):

* ``beat``, every second: after ``link_timeout`` seconds without one, or at the end of the stream, the agent ends itself and all
  processes below it
* ``probe``, ``port``, ``addresses``: which of the first node's addresses can be reached?
* ``go``, ``endpoint``: start the ranks
* ``dump``: have every rank write its Python stack to its log, and report the stacks
* ``finish``, ``signal``: forward that signal to the ranks, which save and exit
* ``stop``: end the ranks at once

An agent sends events, ``{"event": …, "node": N}``:

* ``hello``, ``about`` (versions), ``shared`` (whether it sees the launcher's run folder), ``folder`` (its own)
* ``say``, ``text``: a line for the screen
* ``ready``, ``addresses``, ``port``: model and ops are prepared; only the first node sends the last two
* ``reached``, ``addresses``: the answer to ``probe``
* ``status``, ``ranks``: every second, from the start; for each rank the ``state`` of its process and the ``age`` of its heartbeat
* ``screen``, ``data``: bytes for the terminal, from rank 0
* ``stacks``, ``ranks``: the answer to ``dump``
* ``file``, ``name``, ``data``: a piece of a file of its folder, for the launcher's folder, if that is not shared
* ``piece``, ``data``, ``last``: part of an event that is too long for srun
* ``failed``, ``failure`` (see ``errors.Failure``), or ``done``: the final event. Ranks that saved and exited early are done, with
  ``step`` and ``signal``
"""

import base64
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Self

from hydraft.errors import Failure

FORWARDED = (
    "NCCL_*", "CUDA_*", "HF_*", "HUGGING*", "WANDB_*", "GLOO_*", "TORCH*", "PYTORCH_*", "OMP_*", "HYDRAFT_*", "PYTHON*",
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "TERM", "COLORTERM",
)  # fmt: skip
"""Names of the environment variables that are passed to every host; ``cluster.env`` adds to them."""

KEPT_HERE = ("TORCHELASTIC_*", "TORCH_EXTENSIONS_DIR", "HYDRAFT_HOST")
"""Names among them that are not, since they describe this process or this machine."""

SRUN_LINE = 1000
"""Bytes of a line that is sent through srun, whose messages hold 1024."""


@dataclass(frozen=True)
class LaunchSpec:
    """Everything that an agent needs to start its ranks; sent on stdin, where no process list shows it."""

    hosts: list[str]
    """Name of every host, as the user wrote it; rank 0 is on the first. A name may occur twice."""
    ranks: int
    """Ranks per host."""
    config: str
    """The resolved config, as YAML."""
    folder: str
    """The run's folder on the launcher's machine."""
    token: str
    """Content of ``.launch`` in that folder: a host that reads the same there shares the file system."""
    cwd: str
    """Working directory, for relative paths of the config; the project's folder if it does not exist on the host."""
    node: int | None = None
    """Index in ``hosts`` of the receiver; None if Slurm sets it (``SLURM_NODEID``)."""
    address: str | None = None
    """Address of the first host for the others; None to find one that all of them reach."""
    port: int | None = None
    """Port on the first host; None for any free one."""
    link_timeout: float = 10
    """Seconds without a message after which the other side counts as lost."""
    grace: float = 0
    """Seconds that the ranks get to save upon a shutdown signal; 0 for none."""
    terminal: list[int] | None = None
    """Columns and lines of the launcher's terminal; None if it has none, and rank 0 prints plain lines."""
    quiet: bool = False
    """Print nothing of rank 0."""
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    """Variables that are set before anything is started; they may hold secrets, so they are never written to a file or log."""

    def to_line(self) -> bytes:
        """The first line of an agent's stdin."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Self:
        """The inverse of ``to_line``.

        Raises:
            ValueError: the line is not a launch specification of this version; the message does not quote it.
        """
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError):
            raise ValueError(
                "the first line is not a launch specification: does the launcher run another version of hydraft?"
            ) from None

    @property
    def here(self) -> int:
        """This agent's index in ``hosts``."""
        return int(os.environ["SLURM_NODEID"]) if self.node is None else self.node


def forwarded(environment: Mapping[str, str], more: Iterable[str] = ()) -> dict[str, str]:
    """The variables of ``environment`` that are passed to every host: ``FORWARDED``, and the names in ``more``."""
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
    """A command or an event as a line of JSON; ``bytes`` in it are encoded in base64."""
    return json.dumps(message, default=lambda raw: base64.b64encode(raw).decode()).encode() + b"\n"


def failed(failure: Failure) -> dict[str, Any]:
    """The final event of a node that failed."""
    return {"event": "failed", "failure": failure.to_dict()}


def pieces(raw: bytes, node: int) -> bytes:
    """Split a line into lines that srun passes on whole; it interleaves longer ones with those of other tasks.

    Each is an event ``piece``; the pieces of a node arrive in order, and the one with ``last`` completes the line.
    """
    if len(raw) <= SRUN_LINE:
        return raw
    cut = [raw[start : start + SRUN_LINE // 2] for start in range(0, len(raw), SRUN_LINE // 2)]
    return b"".join(line(event="piece", node=node, data=part, last=part is cut[-1]) for part in cut)
