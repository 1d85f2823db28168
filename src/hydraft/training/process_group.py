"""The process group of a rank: how it is joined, and that nothing which arrives in it is unpickled.

Ranks on one machine find each other through a file in a private folder, so that no store listens for them. Between machines the
store carries the addresses of gloo and NCCL, and nothing else.
"""

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import Any, NoReturn
from urllib.parse import urlparse

from torch.distributed import FileStore, HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed import distributed_c10d as c10d
from torch.distributed.rendezvous import register_rendezvous_handler

from hydraft.training.peers import guard_gloo
from hydraft.training.rendezvous import Rendezvous

SCHEME = "hydraft"
"""Of the ``init_method`` that torch finds ``_join`` by."""


def refuse_pickles() -> None:
    """From now on, a collective of Python objects raises in this process, whichever library calls it.

    torch pickles such objects, and whoever can send to this rank could run code in it. Our own values go through
    ``models/exchange.py``.
    """
    c10d._pickler = c10d._unpickler = _refuse  # type: ignore[assignment]


def _refuse(*_: object) -> NoReturn:
    raise RuntimeError(
        "a collective of Python objects (all_gather_object, broadcast_object_list, …) is refused: it unpickles what other ranks "
        "send, which may contain code; exchange tensors, or JSON with hydraft.models.exchange"
    )


def joining(rendezvous: Rendezvous | None) -> dict[str, Any]:
    """Arguments with which ``deepspeed.init_distributed`` joins the process group of this rank's run.

    Args:
        rendezvous: where the ranks find each other; None if this process has joined a group already.
    """
    if rendezvous is None:
        return {}
    os.environ.pop(
        "LOCAL_SIZE", None
    )  # with it, DeepSpeed shares memory under a name that anyone can guess, and never uses it here
    guard_gloo(only_here=rendezvous.file is not None)
    if rendezvous.file is not None:
        for name in ("MASTER_ADDR", "MASTER_PORT"):  # there is no store that a library could ask
            os.environ.pop(name, None)
    encoded = base64.urlsafe_b64encode(json.dumps(asdict(rendezvous)).encode()).decode()
    return {
        "init_method": f"{SCHEME}://{encoded}/",
        "rank": int(os.environ["RANK"]),
        "world_size": int(os.environ["WORLD_SIZE"]),
    }


def _join(url: str, timeout: timedelta = c10d.default_pg_timeout, **_: Any) -> Iterator[tuple[Store, int, int]]:
    """The store of the ranks; torch calls this with the URL of ``joining``."""
    known = Rendezvous(**json.loads(base64.urlsafe_b64decode(urlparse(url).netloc)))
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store: Any
    if world == 1:
        store = HashStore()
    elif known.file is not None:
        store = FileStore(known.file, world)
    else:
        server = TCPStore(known.address, known.port, timeout=timeout, wait_for_workers=False)
        store = PrefixStore(known.prefix, server)
    _meet(store, world, timeout)
    yield store, rank, world


def _meet(store: Any, world: int, timeout: timedelta) -> None:
    """Wait until all ranks have come this far, so that the ports of gloo are open for milliseconds (``peers.py``)."""
    if store.add("arrived", 1) == world:
        store.set("all", "")
    store.wait(["all"], timeout)


register_rendezvous_handler(SCHEME, _join)
