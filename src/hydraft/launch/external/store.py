"""The rendezvous store of ranks that another launcher started, hosted by that launcher or by rank 0. No torch at module level.

``instructions`` holds what rank 0 has decided: the run to take part in, or the code to exit with. ``end/N`` is how rank N ended,
``failed`` is set once a rank did not end normally, and ``exit`` holds the exit code of all ranks.
"""

import json
import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydraft.errors import ConfigError
from hydraft.launch.external.environment import World

CONNECT_TIMEOUT = timedelta(minutes=10)
"""For the store to be available: machines need not start at the same time."""

DONE, FAILED, STOPPED = "done", "failed", "stopped"


class StoreLost(Exception):
    """The store no longer responds: the process that hosted it has ended."""


class RendezvousStore:
    """One rank's access to the store of all ranks. No method blocks for long, so that signals are handled."""

    def __init__(self, world: World) -> None:
        """Connect; rank 0 hosts the store unless the launcher does.

        Raises:
            ConfigError: the port is in use, or ranks of another run use this store.
            StoreLost: the store does not respond.
        """
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        self.world = world
        endpoint = f"{world.address}:{world.port}"
        in_use = f"MASTER_PORT={world.port}: another run uses it on {world.address}: give the launcher another port"
        hosting = world.rank == 0 and not world.hosts_store
        try:
            server = TCPStore(world.address, world.port, world.size, hosting, CONNECT_TIMEOUT, wait_for_workers=False)
        except RuntimeError as error:
            if hosting and "EADDRINUSE" in str(error):
                raise ConfigError(in_use) from None
            raise StoreLost(f"rank {world.rank} cannot connect to {endpoint}: {str(error).splitlines()[0]}") from None
        self.store = PrefixStore(f"hydraft/{world.attempt}", server)
        if self.store.add(f"here/{world.rank}", 1) > 1:
            raise ConfigError(in_use)
        self._set(f"process/{world.rank}", {"host": socket.gethostname(), "pid": os.getpid()})

    def publish(self, **instructions: Any) -> None:
        """Rank 0: publish what the other ranks have to do."""
        self._set("instructions", instructions)

    def instructions(self) -> dict[str, Any] | None:
        """What rank 0 has published; None before that."""
        return self._get("instructions")

    def report_end(self, status: str, **details: Any) -> None:
        """Report how this rank ended: ``DONE``, ``FAILED`` or ``STOPPED``."""
        self._set(f"end/{self.world.rank}", {"status": status, "time": time.time(), **details})
        if status != DONE:
            self._set("failed", {})

    def has_failed(self) -> bool:
        """Whether a rank did not end normally."""
        return self._has("failed")

    def ends(self) -> dict[int, dict[str, Any]]:
        """How the ranks that have ended did so, by rank."""
        ends = {rank: self._get(f"end/{rank}") for rank in range(self.world.size)}
        return {rank: end for rank, end in ends.items() if end is not None}

    def report_hang(self, known: dict[str, Any]) -> None:
        """Report that this rank makes no progress, with its stack; an empty dict: it makes progress again."""
        self._set(f"hung/{self.world.rank}", known)

    def hung_ranks(self) -> dict[int, dict[str, Any]]:
        """The ranks that make no progress, with their stacks."""
        known = {rank: self._get(f"hung/{rank}") for rank in range(self.world.size)}
        return {rank: stack for rank, stack in known.items() if stack}

    def is_dead(self, rank: int) -> bool:
        """Whether the process that started that rank is known to have ended; nothing is known of another machine's."""
        process = self._get(f"process/{rank}")
        if process is None or process["host"] != socket.gethostname():
            return False
        try:
            stat = Path(f"/proc/{process['pid']}/stat").read_text()
        except OSError:
            return True
        return stat.rpartition(")")[2].split()[0] == "Z"  # its launcher has not noticed yet

    def close(self, code: int, seconds: float = 5) -> None:
        """Rank 0: have the others exit with ``code``, and wait for them, since a launcher may kill ranks that are late."""
        self._set("exit", {"code": code})
        before = time.monotonic()
        while self._number("left") < self.world.size - 1 and time.monotonic() - before < seconds:
            time.sleep(0.02)

    def exit_code(self) -> int | None:
        """The code to exit with; None until rank 0 has published it."""
        value = self._get("exit")
        return None if value is None else int(value["code"])

    def leave(self) -> None:
        """This rank has read the exit code."""
        self._number("left", 1)

    def _has(self, key: str) -> bool:
        try:
            return bool(self.store.check([key]))
        except RuntimeError as error:
            raise StoreLost(str(error)) from None

    def _get(self, key: str) -> dict[str, Any] | None:
        if not self._has(key):
            return None
        try:
            value: dict[str, Any] = json.loads(self.store.get(key))
        except RuntimeError as error:
            raise StoreLost(str(error)) from None
        return value

    def _set(self, key: str, value: dict[str, Any]) -> None:
        try:
            self.store.set(key, json.dumps(value))
        except RuntimeError as error:
            raise StoreLost(str(error)) from None

    def _number(self, key: str, increment: int = 0) -> int:
        try:
            return int(self.store.add(key, increment))
        except RuntimeError as error:
            raise StoreLost(str(error)) from None
