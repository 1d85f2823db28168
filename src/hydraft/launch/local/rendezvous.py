"""The rendezvous of torch's elastic agent for a run on one machine: a TCPStore on any free port.

torch's own for any free port ("c10d") names each of its events with ``inspect.stack``, which searches every imported module for its
file: in a process that has imported transformers, as a sweep's jobs have, a run takes two seconds longer with it.
"""

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousParameters, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

BACKEND = "hydraft"
"""Name of the rendezvous in torch's registry."""


class LocalRendezvous(StaticTCPRendezvous):
    """One node; the ranks use the agent's store."""

    def __init__(self, run_id: str) -> None:
        super().__init__("localhost", 0, rank=0, world_size=1, run_id=run_id, timeout=60)

    def get_backend(self) -> str:
        """Its name in torch's registry."""
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """Start the store, whose port is known only then."""
        self._store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        self.master_port = self._store.port
        return super().next_rendezvous()


def register() -> str:
    """Make it known to torch's launcher; returns the ``rdzv_backend`` that selects it."""
    rendezvous_handler_registry.register(BACKEND, _create)
    return BACKEND


def _create(parameters: RendezvousParameters) -> LocalRendezvous:
    return LocalRendezvous(parameters.run_id)
