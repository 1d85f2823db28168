"""The rendezvous store of ranks that another launcher started, hosted by that launcher or by rank 0. No torch at module level.

``instructions`` holds what rank 0 has decided: the run to take part in, or the code to exit with. ``end/N`` is how rank N ended,
``failed`` is set once a rank did not end normally, and ``exit`` holds the exit code of all ranks.

Whoever reaches the store can change it. So on one machine ``instructions`` only names a folder of rank 0's, which no other user can
have made, and what the ranks do is in there.
"""

import errno
import json
import os
import socket
import stat
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydraft.errors import ConfigError
from hydraft.launch.external.environment import World
from hydraft.system import files, temporary
from hydraft.training.rendezvous import Rendezvous

CONNECT_TIMEOUT = timedelta(minutes=10)
"""For the store to be available: machines need not start at the same time."""

LOOPBACK = "127.0.0.1"

INSTRUCTIONS = "instructions.json"
"""In the private folder of ranks on one machine."""

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
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        self.world = world
        self.private: Path | None = None
        """On one machine, the folder of rank 0's that holds its instructions; None until they are known."""
        in_use = f"MASTER_PORT={world.port}: another run uses it on {world.address}: give the launcher another port"
        try:
            server = _connect(world)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ConfigError(
                    f"MASTER_PORT={world.port}: {error.strerror}: give the launcher another port"
                ) from None
            raise ConfigError(in_use) from None
        except RuntimeError as error:
            endpoint = f"{world.address}:{world.port}"
            raise StoreLost(f"rank {world.rank} cannot connect to {endpoint}: {str(error).splitlines()[0]}") from None
        self.store = PrefixStore(f"hydraft/{world.attempt}", server)
        if self.store.add(f"here/{world.rank}", 1) > 1:
            raise ConfigError(in_use)
        self._set(f"process/{world.rank}", {"host": socket.gethostname(), "pid": os.getpid()})

    def publish(self, **instructions: Any) -> None:
        """Rank 0: publish what the other ranks have to do."""
        if self.world.nodes > 1:
            self._set("instructions", instructions)
            return
        self.private = temporary.make("ranks")
        files.write_json(self.private / INSTRUCTIONS, {"store": self._name, **instructions})
        self._set("instructions", {"folder": str(self.private)})

    def instructions(self) -> dict[str, Any] | None:
        """What rank 0 has published; None before that.

        Raises:
            StoreLost: the store is lost, or another user has changed what is in it.
        """
        found = self._get("instructions")
        if found is None or self.world.nodes > 1:
            return found
        self.private = _own_folder(found.get("folder"))
        try:
            instructions: dict[str, Any] = json.loads((self.private / INSTRUCTIONS).read_text())
        except (OSError, ValueError) as error:
            if (code := self.exit_code()) is not None:  # rank 0 has not waited for this rank
                return {"exit": code}
            raise StoreLost(f"rank 0's instructions cannot be read: {error}") from None
        if instructions.pop("store", None) != self._name:
            raise StoreLost("the instructions are those of another run's rank 0")
        return instructions

    def rendezvous(self) -> Rendezvous:
        """Where the ranks find each other; known once the instructions are."""
        if self.private is not None:
            return Rendezvous(file=str(self.private / "store"))
        world = self.world
        return Rendezvous(address=world.address, port=world.port, prefix=f"hydraft/{world.attempt}/ranks")

    @property
    def _name(self) -> str:
        """Of this store, among those of a user's runs."""
        return f"{self.world.address}:{self.world.port}/{self.world.attempt}"

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
        try:
            self._set("exit", {"code": code})
            before = time.monotonic()
            while self._number("left") < self.world.size - 1 and time.monotonic() - before < seconds:
                time.sleep(0.02)
        finally:
            if self.private is not None:
                temporary.remove(self.private)

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
            value = json.loads(self.store.get(key))
        except (RuntimeError, ValueError, RecursionError) as error:
            raise StoreLost(str(error)) from None
        if not isinstance(value, dict):
            raise StoreLost(f"{key} in the store is {value!r:.40}, which no rank has written")
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


def _connect(world: World) -> Any:
    """Connect to the store of ``world``, which rank 0 hosts unless the launcher does.

    Raises:
        OSError: rank 0 cannot listen at the port.
        RuntimeError: the store does not respond.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from hydraft.launch.local import tcp_store

    address = LOOPBACK if world.nodes == 1 and not world.hosts_store else world.address
    if world.rank != 0 or world.hosts_store:
        return TCPStore(address, world.port, timeout=CONNECT_TIMEOUT, wait_for_workers=False)
    listen = LOOPBACK if world.nodes == 1 else _own_address(address)
    try:
        return tcp_store.host(address, world.port, listen, CONNECT_TIMEOUT)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        return tcp_store.host(
            address, world.port, "", CONNECT_TIMEOUT
        )  # an address outside, which leads to this machine


def _own_address(name: str) -> str:
    """The address of this machine that ``name`` stands for on all machines; empty if that is not certain."""
    try:
        found = {str(address[4][0]) for address in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except OSError:
        return ""
    if name in ("localhost", *found):  # an address itself
        return min(found) if len(found) == 1 else LOOPBACK
    outside = {address for address in found if not address.startswith(("127.", "::1", "fe80"))}
    return outside.pop() if len(outside) == 1 and len(found) == 1 else ""  # loopback elsewhere is another machine


def _own_folder(path: Any) -> Path:
    """The folder at ``path``, if only this user can have made it.

    Raises:
        StoreLost: it is not.
    """
    try:
        about = os.lstat(str(path))
    except (OSError, ValueError) as error:
        raise StoreLost(f"rank 0's instructions cannot be read: {error}") from None
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise StoreLost(f"{path} is no folder of this user's: someone else has changed the store of the ranks")
    return Path(str(path))
