"""Where ranks that another launcher started meet: one small store, kept by the launcher or by rank 0. No torch at module level.

``word`` is what rank 0 decided: a run to join, or the code to end with. ``end/N`` is how rank N ended, ``bad`` is there once
one of them did not end well, and ``over`` holds the exit code of all.
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

PATIENCE = timedelta(minutes=10)
"""For the store to be there: machines need not start at once."""

DONE, FAILED, STOPPED = "done", "failed", "stopped"


class Lost(Exception):
    """The store is gone, and with it whoever kept it."""


class Meeting:
    """One rank's access to what all ranks share. Nothing here blocks, so that signals are heard."""

    def __init__(self, world: World) -> None:
        """Connect, or on rank 0 open the store where no launcher keeps one.

        Raises:
            ConfigError: the port is taken, or another run's ranks meet there.
            Lost: nobody answers.
        """
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

        self.world = world
        here = f"{world.address}:{world.port}"
        taken = f"MASTER_PORT={world.port}: another run uses it on {world.address}: give the launcher another port"
        keeper = world.rank == 0 and not world.kept
        try:
            server = TCPStore(world.address, world.port, world.size, keeper, PATIENCE, wait_for_workers=False)
        except RuntimeError as error:
            if keeper and "EADDRINUSE" in str(error):
                raise ConfigError(taken) from None
            raise Lost(f"rank {world.rank} finds nobody at {here}: {str(error).splitlines()[0]}") from None
        self.store = PrefixStore(f"hydraft/{world.attempt}", server)
        if self.store.add(f"here/{world.rank}", 1) > 1:
            raise ConfigError(taken)
        self._set(f"process/{world.rank}", {"host": socket.gethostname(), "pid": os.getpid()})

    def announce(self, **word: Any) -> None:
        """Rank 0: what the others are to do."""
        self._set("word", word)

    def word(self) -> dict[str, Any] | None:
        """What rank 0 announced; None as long as it has not."""
        return self._get("word")

    def tell(self, status: str, **more: Any) -> None:
        """How this rank ended: ``DONE``, ``FAILED`` or ``STOPPED``."""
        self._set(f"end/{self.world.rank}", {"status": status, "time": time.time(), **more})
        if status != DONE:
            self._set("bad", {})

    def bad(self) -> bool:
        """Whether a rank did not end well."""
        return self._has("bad")

    def ends(self) -> dict[int, dict[str, Any]]:
        """How each rank ended that has."""
        ends = {rank: self._get(f"end/{rank}") for rank in range(self.world.size)}
        return {rank: end for rank, end in ends.items() if end is not None}

    def stand(self, known: dict[str, Any]) -> None:
        """This rank has not got on for too long, with what is ``known`` of it; or, with nothing, it has again."""
        self._set(f"still/{self.world.rank}", known)

    def standing(self) -> dict[int, dict[str, Any]]:
        """The ranks that do not get on."""
        known = {rank: self._get(f"still/{rank}") for rank in range(self.world.size)}
        return {rank: told for rank, told in known.items() if told}

    def is_dead(self, rank: int) -> bool:
        """Whether that rank's watcher is known to be gone; of another machine nothing is known."""
        process = self._get(f"process/{rank}")
        if process is None or process["host"] != socket.gethostname():
            return False
        try:
            stat = Path(f"/proc/{process['pid']}/stat").read_text()
        except OSError:
            return True
        return stat.rpartition(")")[2].split()[0] == "Z"  # its launcher has not noticed yet

    def close(self, code: int, seconds: float = 5) -> None:
        """Rank 0: tell the others to end with ``code``, and wait for them, since a launcher would kill who is late."""
        self._set("over", {"code": code})
        before = time.monotonic()
        while self._number("left") < self.world.size - 1 and time.monotonic() - before < seconds:
            time.sleep(0.02)

    def over(self) -> int | None:
        """The code to end with; None as long as rank 0 has not said it."""
        word = self._get("over")
        return None if word is None else int(word["code"])

    def leave(self) -> None:
        """This rank has heard that it is over."""
        self._number("left", 1)

    def _has(self, key: str) -> bool:
        try:
            return bool(self.store.check([key]))
        except RuntimeError as error:
            raise Lost(str(error)) from None

    def _get(self, key: str) -> dict[str, Any] | None:
        if not self._has(key):
            return None
        try:
            value: dict[str, Any] = json.loads(self.store.get(key))
        except RuntimeError as error:
            raise Lost(str(error)) from None
        return value

    def _set(self, key: str, value: dict[str, Any]) -> None:
        try:
            self.store.set(key, json.dumps(value))
        except RuntimeError as error:
            raise Lost(str(error)) from None

    def _number(self, key: str, more: int = 0) -> int:
        try:
            return int(self.store.add(key, more))
        except RuntimeError as error:
            raise Lost(str(error)) from None
