"""The connections of a server whose application is small: who makes room, who is refused, and who is cut off."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from conftest import SCALE
from hydraft.infer.serve import logs
from hydraft.infer.serve.connections import SPARE, Connection, Connections
from hydraft.infer.serve.middleware import Access, AccessMiddleware

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
OTHER = b"GET /other HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
BUSY = HEALTH.replace(b"/health", b"/busy")
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Small:
    """An application that answers /busy when it is told to, /large with 32 MB, and anything else at once."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["path"] == "/busy":
            await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000 if scope["path"] == "/large" else 0):
            await send({"type": "http.response.body", "body": b"x" * 32_000, "more_body": True})
        await send({"type": "http.response.body", "body": b"done"})


@asynccontextmanager
async def serving(most: int, patience: float) -> AsyncIterator[tuple[int, Connections, Small]]:
    """A server of ``Small`` with these limits: its port, its connections and its application."""
    connections, small = Connections(most, patience), Small()
    access = Access(None, True, 1000, patience, lambda: connections.full)
    config = uvicorn.Config(
        AccessMiddleware(small, access, lambda route, status: None),
        http=Connection, log_config=None, lifespan="off", timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.server_state = connections
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server._serve([listener]))
        watch = asyncio.create_task(connections.watch())
        while not server.started:
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1], connections, small
        small.go_on.set()
        server.should_exit = True
        await task
        watch.cancel()


async def send(port: int, sent: bytes) -> Stream:
    """A new connection on which ``sent`` was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    return reader, writer


async def status(stream: Stream) -> int:
    """The status of the next answer; 0 if the server closes the connection."""
    try:
        line = await asyncio.wait_for(stream[0].readline(), 10 * SCALE)
    except ConnectionError:
        return 0
    return int(line.split()[1]) if line else 0


async def until(condition: Callable[[], bool]) -> None:
    """Wait for ``condition``."""
    async with asyncio.timeout(10 * SCALE):
        while not condition():
            await asyncio.sleep(0.01)


def test_connections_that_wait_for_their_client_make_room() -> None:
    """Idle ones first, then half heads, then half bodies, each the oldest first; never one whose answer is being made."""

    async def main() -> None:
        async with serving(most=6, patience=60) as (port, connections, _):
            busy = [await send(port, BUSY)]
            body = await send(port, b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            heads = [await send(port, b"GET / HT") for _ in range(2)]
            idle = [await send(port, HEALTH) for _ in range(2)]
            assert [await status(each) for each in idle] == [200, 200]
            await until(lambda: len(connections.connections) == 6)
            order = [idle[0], idle[1], heads[0], heads[1], body]
            for gone in order:
                busy.append(await send(port, BUSY))
                await asyncio.wait_for(gone[0].read(), 10 * SCALE)  # until it is closed
                assert len(connections.connections) == 6 and not any(each[0].at_eof() for each in busy)

    asyncio.run(main())


def test_a_full_server_still_tells_its_health() -> None:
    async def main() -> None:
        async with serving(most=4, patience=60) as (port, connections, small):
            busy = [await send(port, BUSY) for _ in range(4)]
            await until(lambda: len(connections.connections) == 4)
            assert [await status(await send(port, each)) for each in (OTHER, HEALTH, OTHER)] == [503, 200, 503]
            heads = [await send(port, b"GET / HT") for _ in range(3 * SPARE)]  # spare places are no place to stay
            assert await status(await send(port, HEALTH)) == 200
            small.go_on.set()
            assert [await status(each) for each in busy] == [200] * 4
            assert len(connections.connections) <= 4 + SPARE
            for _, writer in heads:
                writer.close()

    asyncio.run(main())


def test_clients_that_do_not_read_are_cut_off() -> None:
    """The memory of an answer that nobody takes, and its place, are free after a while; who reads slowly gets all of it."""

    async def main() -> None:
        async with serving(most=4, patience=0.5) as (port, connections, _):
            large = HEALTH.replace(b"/health", b"/large").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            deaf, slow = await send(port, large), await send(port, large)
            await until(lambda: len(connections.connections) == 2)
            deaf[0]._transport.pause_reading()  # type: ignore[attr-defined]
            read = 0
            while part := await slow[0].read(2_000_000):
                read += len(part)
                await asyncio.sleep(0.02)
            assert read > 32_000_000
            await until(lambda: not connections.connections)

    asyncio.run(main())


def test_each_kind_of_message_is_logged_once_and_without_control_characters() -> None:
    sparing, plain = logs.Sparing(), logs.Plain("%(message)s")

    def logged(text: str, *values: object) -> str | None:
        record = logging.LogRecord("uvicorn.error", logging.WARNING, "", 1, text, values, None)
        return plain.format(record) if sparing.filter(record) else None

    assert logged("bad %s", "a\x1b[2J\r\ud800\x85") == "bad a\\x1b[2J\\r\\ud800\\x85"
    assert [logged("bad %s", number) for number in range(500)] == [None] * 500
    assert logged("other") == "other" and len(logged("long %s", "x" * 100_000) or "") < 9000
    sparing._seen = {kind: (-1e9, missed) for kind, (_, missed) in sparing._seen.items()}
    assert logged("bad %s", 7) == "bad 7 (500 more of these since the last one)"
    for number in range(1000):
        logged(f"always another {number}")
    assert len(sparing._seen) <= logs.KINDS


def test_running_out_of_files_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    with caplog.at_level(logging.WARNING, "asyncio"):
        logs.on_loop_error(
            loop, {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many")}
        )
    loop.close()
    (record,) = caplog.records
    assert record.exc_info is None and "could not be accepted" in record.getMessage()
