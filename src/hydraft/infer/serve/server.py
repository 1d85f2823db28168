"""The server process: uvicorn around the engine, with a graceful shutdown."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn

from hydraft.config.serve import ServeConfig
from hydraft.errors import RunFailed
from hydraft.infer.load import LoadedModel
from hydraft.infer.serve import examples, logs
from hydraft.infer.serve.app import build
from hydraft.infer.serve.connections import Connection, Connections
from hydraft.infer.serve.engine import Engine
from hydraft.infer.serve.listen import ACCEPTED, BACKLOG, is_local, most_connections
from hydraft.infer.serve.middleware import Access
from hydraft.infer.serve.registry import served_models

FLUSH_SECONDS = 5.0
"""Seconds after ``serve.drain`` in which the last responses are sent."""


class Server(uvicorn.Server):
    """uvicorn's server with a graceful shutdown: running answers are finished, new requests are refused."""

    def __init__(self, config: uvicorn.Config, engine: Engine, connections: Connections, drain: float) -> None:
        super().__init__(config)
        self.engine, self.server_state, self.drain = engine, connections, drain

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections: a few in one go, so that no more are open than there is room for, while the others wait."""
        asyncio.get_running_loop().set_exception_handler(logs.on_loop_error)
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)  # `backlog` of uvicorn is for both

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain at the first SIGTERM or Ctrl-C, end at once at the second. (uvicorn would raise the signal again at the end.)"""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.shut_down)
        assert isinstance(self.server_state, Connections)
        tasks = [loop.create_task(self._watch()), loop.create_task(self.server_state.watch())]
        yield
        for task in tasks:
            task.cancel()

    def shut_down(self) -> None:
        """Refuse new requests, and finish running answers within ``drain`` seconds."""
        if self.should_exit:
            self.engine.fail_all("the server was stopped")
            return
        left = len(self.engine.running) + len(self.engine.waiting)
        print(f"shutting down: {left} answers have {self.drain:.0f} s to finish", file=sys.stderr, flush=True)
        self.should_exit = True
        self.engine.close()
        late = "the server is shutting down, and this answer was not finished in time"
        asyncio.get_running_loop().call_later(self.drain, self.engine.fail_all, late)

    async def _watch(self) -> None:
        """Shut down if the batch thread has stopped."""
        while not self.started:
            await asyncio.sleep(0.1)
        while self.engine.alive:
            await asyncio.sleep(0.5)
        if not self.should_exit:
            self.failed = True
            self.shut_down()

    failed = False


def serve(loaded: LoadedModel, options: ServeConfig, listener: socket.socket, key: str | None, files: int) -> None:
    """Serve requests at ``listener`` until a signal ends it. ``files``: the most that may be open.

    Raises:
        RunFailed: the batch thread stopped.
    """
    models = served_models(loaded)
    vocabulary = min(len(model.tokenizer) for model in models.values())
    engine = Engine(loaded.model, vocabulary, options)
    connections = Connections(most_connections(options, files), options.client_timeout)
    if connections.most < options.max_running + options.max_waiting:
        print(f"notice: ulimit -n leaves room for {connections.most} connections at once", file=sys.stderr)
    access = Access(key, is_local(options.host), options.max_body, options.client_timeout, lambda: connections.full)
    app = build(engine, models, access, examples.prompts(loaded) if access.local else [])
    logs.install()
    config = uvicorn.Config(
        app,
        http=Connection,
        backlog=ACCEPTED,
        log_config=None,
        access_log=False,
        proxy_headers=False,  # nothing depends on who the client is
        server_header=False,
        timeout_graceful_shutdown=int(options.drain + FLUSH_SECONDS),
        ws="none",
    )
    server = Server(config, engine, connections, options.drain)
    host, port = listener.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{port}"
    print(f"serving {', '.join(models)} at {url}\nchat page: {url}/", file=sys.stderr, flush=True)
    asyncio.run(server.serve(sockets=[listener]))
    if server.failed:
        raise RunFailed("infer.py: the model stopped; the error is above")
