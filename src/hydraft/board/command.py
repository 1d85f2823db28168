"""``hydraft board [FOLDER…] [--port N] [--api-key-file FILE]``: a local page of all runs and sweeps, live. No torch."""

import argparse
import socket
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

import uvicorn
from fastapi import APIRouter

from hydraft.board import actions, form
from hydraft.board.app import Board, build
from hydraft.board.listing import Listing
from hydraft.board.planner import Planner
from hydraft.board.roots import roots_of
from hydraft.config.serve import ServeConfig
from hydraft.errors import EXIT_REFUSED, ConfigError
from hydraft.infer.serve.listen import api_key, listen
from hydraft.infer.serve.middleware import Access

PORT = 8600
"""The port to listen on, if it is free."""
MOST_BODY = 200_000
"""Bytes of a request's body."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def main(arguments: list[str]) -> int:
    """Serve the board until a signal ends it.

    Returns:
        0, or 2 if the command is refused.
    """
    parser = _Parser(prog="hydraft board", description="A local page of all runs and sweeps, live.")
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="folders of runs and sweeps (outputs multirun)")
    parser.add_argument("--port", type=_port, help=f"port of 127.0.0.1 ({PORT}, or a free one if that is taken)")
    parser.add_argument("--api-key-file", help="a file with a key that the page asks for")
    try:
        given = parser.parse_args(arguments)
        board = Board(Listing(roots_of(given.folders)))
        serve = ServeConfig(port=PORT if given.port is None else given.port, api_key_file=given.api_key_file)
        key = _key(serve)
        listener = _listen(serve, key, given.port is not None)
    except ConfigError as error:
        print(f"hydraft board: {error}", file=sys.stderr)
        return EXIT_REFUSED
    access = Access(key, local=True, max_body=MOST_BODY, patience=serve.client_timeout, full=lambda: False)
    app = build(board, access, routers(board))
    threading.Thread(target=board.listing.changes, daemon=True).start()  # read by the time that the page asks
    print(f"http://{serve.host}:{listener.getsockname()[1]}/", flush=True)
    folders = ", ".join(str(root.folder) for root in board.listing.roots)
    print(f"shows {folders}; Ctrl-C ends the board, and no run", file=sys.stderr, flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=2, h11_max_incomplete_event_size=16384)  # fmt: skip
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # uvicorn raises the signal again at its end
        pass
    finally:
        listener.close()
    return 0


def routers(board: Board) -> Sequence[APIRouter]:
    """The routers of what the page does to runs."""
    return (form.router(board, Planner()), actions.router(board))


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text}: must be a port between 0 and 65535; 0 for any free one")
    return int(text)


def _key(serve: ServeConfig) -> str | None:
    try:
        return api_key(serve)
    except ConfigError as error:
        raise ConfigError(str(error).replace("serve.api_key_file=", "--api-key-file ")) from None


def _listen(serve: ServeConfig, key: str | None, named: bool) -> socket.socket:
    """The board's socket: of the usual port, or if that is taken and was not named, of any free one."""
    try:
        return listen(serve, key)
    except ConfigError as error:
        if named:
            raise ConfigError(f"--port {serve.port}: {str(error).rpartition(': ')[2]}") from None
    serve.port = 0
    return listen(serve, key)
