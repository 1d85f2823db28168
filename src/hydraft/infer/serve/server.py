"""The server's process: from a loaded model to the last answer."""

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn

from hydraft.config.serve import ServeConfig
from hydraft.errors import RunFailed
from hydraft.infer.load import Loaded
from hydraft.infer.serve.app import build
from hydraft.infer.serve.engine import Engine
from hydraft.infer.serve.listen import is_local
from hydraft.infer.serve.registry import voices

FLUSH_SECONDS = 5.0
"""After ``serve.drain``, for what is left to be told."""


class Server(uvicorn.Server):
    """uvicorn's, which ends well where it was asked to end, and takes nothing new meanwhile."""

    def __init__(self, config: uvicorn.Config, engine: Engine, drain: float) -> None:
        super().__init__(config)
        self.engine, self.drain = engine, drain

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain at the first SIGTERM or Ctrl-C, end at once at the second. (uvicorn would raise it again at the end.)"""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.end)
        watch = loop.create_task(self._watch())
        yield
        watch.cancel()

    def end(self) -> None:
        """Take nothing new, and finish what runs within ``drain`` seconds."""
        if self.should_exit:
            self.engine.end_all("the server was ended")
            return
        left = len(self.engine.running) + len(self.engine.waiting)
        print(f"ending: {left} answers have {self.drain:.0f} s", file=sys.stderr, flush=True)
        self.should_exit = True
        self.engine.close()
        late = "the server is ending, and this answer was not finished in time"
        asyncio.get_running_loop().call_later(self.drain, self.engine.end_all, late)

    async def _watch(self) -> None:
        """A server whose model has stopped is of no use to anyone."""
        while not self.started:
            await asyncio.sleep(0.1)
        while self.engine.alive:
            await asyncio.sleep(0.5)
        if not self.should_exit:
            self.failed = True
            self.end()

    failed = False


def serve(loaded: Loaded, options: ServeConfig, listener: socket.socket, key: str | None) -> None:
    """Answer requests at ``listener`` until told to end.

    Raises:
        RunFailed: the model stopped.
    """
    found = voices(loaded)
    words = min(len(voice.tokenizer) for voice in found.values())
    engine = Engine(loaded.model, words, options)
    app = build(engine, found, options, key, is_local(options.host))
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(options.drain + FLUSH_SECONDS),
        ws="none",
    )
    server = Server(config, engine, options.drain)
    host, port = listener.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    print(f"serving {', '.join(found)} at http://{name}:{port}", file=sys.stderr, flush=True)
    asyncio.run(server.serve(sockets=[listener]))
    if server.failed:
        raise RunFailed("infer.py: the model stopped; what led to it is above")
