"""The rendezvous of torch's elastic agents: in memory for one machine, otherwise a TCPStore on the first one.

torch's own for any free port ("c10d") unpickles what is in a store that anyone can write to, and listens on every interface; its
"static" one listens on every interface too. For one machine nothing has to listen.
"""

from datetime import timedelta
from typing import Any

from torch.distributed import HashStore, PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from hydraft.launch.local import tcp_store

BACKEND = "hydraft"
"""Name of the rendezvous in torch's registry."""


class AgentRendezvous(RendezvousHandler):
    """The agents of a run, one on each machine; the first one's ranks come first."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self.parameters = parameters
        self.store: Any = None

    def get_backend(self) -> str:
        """Its name in torch's registry."""
        return BACKEND

    @property
    def use_agent_store(self) -> bool:
        """Whether ranks that look for a store by themselves use this one."""
        return self.parameters.max_nodes > 1

    def next_rendezvous(self) -> RendezvousInfo:
        """Start the store, or connect to that of the first machine."""
        nodes, rank = self.parameters.max_nodes, int(self.parameters.config.get("rank", 0))
        address, port = parse_rendezvous_endpoint(self.parameters.endpoint, 0)
        if self.store is None:
            self.store = HashStore() if nodes == 1 else self._connect(address, port, hosting=rank == 0)
        store = PrefixStore(self.parameters.run_id, self.store)
        return RendezvousInfo(store, rank, nodes, RendezvousStoreInfo(address, port))

    def _connect(self, address: str, port: int, hosting: bool) -> TCPStore:
        timeout = timedelta(seconds=int(self.parameters.config["timeout"]))
        if hosting:
            return tcp_store.host(address, port, self.parameters.config["listen"], timeout)
        return TCPStore(address, port, timeout=timeout, wait_for_workers=False)

    def is_closed(self) -> bool:
        """Whether no agent may join any more: they never do later."""
        return False

    def set_closed(self) -> None:
        """Nothing to close."""

    def num_nodes_waiting(self) -> int:
        """The number of agents that want to join later: none."""
        return 0

    def get_run_id(self) -> str:
        """The same on every machine."""
        return self.parameters.run_id

    def shutdown(self) -> bool:
        """Nothing to shut down: the store ends with this process."""
        return True


def register() -> str:
    """Make it known to torch's launcher; returns the ``rdzv_backend`` that selects it."""
    rendezvous_handler_registry.register(BACKEND, AgentRendezvous)
    return BACKEND
