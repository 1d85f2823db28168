"""Raw sockets against one real server that may open 256 files: it answers others meanwhile, says little, and is as before afterwards."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from raw_http import AUTHORIZED, connect, exchange, read_all, request, statuses

from conftest import SCALE, run_script, wait_for
from serving import Server

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PATIENCE = 2.0
"""The server's ``serve.client_timeout``."""
SHORT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "好"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def victim(adapters: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with few files and little patience."""
    settings = ("serve.max_running=6", "serve.max_waiting=6", f"serve.client_timeout={PATIENCE}")
    made = Server(adapters[:1], tmp_path_factory.mktemp("victim") / "streams", settings, {"TEST_OPEN_FILES": "256"})
    try:
        yield made.start()
    finally:
        code = made.end()
    assert code == 0, made.said()


@pytest.fixture
def unharmed(victim: Server) -> Iterator[None]:
    """After each attack: others are answered, nothing is running, no traceback, little was said, and memory is as it was."""
    process, before = psutil.Process(victim.process.pid), len(victim.said())
    memory = process.memory_info().rss
    yield
    answered(victim)
    wait_for(victim.idle, 30, "an idle server")
    wait_for(lambda: process.num_fds() < 100, 30, "the end of the attack's connections")
    grown = process.memory_info().rss - memory
    assert grown < 256 * 2**20, f"memory grew by {grown / 2**20:.0f} MiB"
    said = victim.said()[before:]
    assert "Traceback" not in said and len(said) < 1000, said[-2000:]


def answered(server: Server) -> float:
    """Seconds that a short completion and /health take, each on its own connection."""
    start = time.monotonic()
    health = exchange(server.url, request(b"GET /health", b"Connection: close\r\n"))
    assert statuses(health) == [200], health
    said = server.post(CHAT, json=SHORT)
    assert said.status_code == 200, said.text
    return time.monotonic() - start


def test_half_heads_are_closed_while_others_are_answered(victim: Server, unharmed: None) -> None:
    """400 of them where 256 files may be open; and heads that go on for ever, a byte at a time."""
    attack = [connect(victim.url) for _ in range(400)]
    for connection in attack:
        with contextlib.suppress(ConnectionError):  # it has made room for another
            connection.sendall(b"GET / HTTP/1.1\r\nHost: local")
    answered(victim)
    slow, start = [connect(victim.url) for _ in range(3)], time.monotonic()
    sent = [b"GET / HTTP/1.1\r\nX-Long: ", b"\x16\x03\x01\x02\x00\x01", request(b"GET /health") + b"GET /hea"]
    for connection, begun in zip(slow, sent, strict=True):
        connection.sendall(begun)
    open_still = set(slow)
    while open_still:
        assert time.monotonic() - start < 10 * PATIENCE * SCALE, open_still
        time.sleep(PATIENCE / 10)
        for connection in list(open_still):
            try:
                connection.sendall(b"x")
            except ConnectionError:
                open_still.remove(connection)
    assert [read_all(connection) for connection in attack] == [b""] * 400
    for connection in (*attack, *slow):
        connection.close()


def test_half_bodies_are_answered_and_closed(victim: Server, unharmed: None) -> None:
    """Whole heads, and a body that stays away, or comes a byte at a time: with the key and without."""
    length = b"Content-Type: application/json\r\nContent-Length: 900000\r\n"
    known = request(b"POST /v1/completions", length)
    unknown = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + length + b"\r\n"
    kinds = [known] * 40 + [unknown] * 40 + [known.replace(length, b"Transfer-Encoding: chunked\r\n") + b"5\r\n{"] * 5
    attack = [connect(victim.url) for _ in kinds]
    for connection, head in zip(attack, kinds, strict=True):
        connection.sendall(head)
    answered(victim)
    start, open_still = time.monotonic(), set(attack)
    while open_still:
        assert time.monotonic() - start < 10 * PATIENCE * SCALE, len(open_still)
        time.sleep(PATIENCE / 10)
        for connection in list(open_still):
            try:
                connection.sendall(b" ")
            except ConnectionError:
                open_still.remove(connection)
    for connection in attack:
        connection.close()


REFUSED: dict[str, tuple[bytes, int]] = {
    "two lengths": (b"POST / HTTP/1.1\r\n%bContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    "a length and chunks": (b"POST / HTTP/1.1\r\n%bContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n", 400),
    "a negative length": (b"POST / HTTP/1.1\r\n%bContent-Length: -1\r\n\r\n", 400),
    "a length with a sign": (b"POST / HTTP/1.1\r\n%bContent-Length: +1\r\n\r\na", 400),
    "a list of lengths": (b"POST / HTTP/1.1\r\n%bContent-Length: 1, 2\r\n\r\na", 400),
    "a length beyond all": (b"POST / HTTP/1.1\r\n%bContent-Length: " + b"9" * 30 + b"\r\n\r\n", 400),
    "a chunk without a size": (b"POST / HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "a negative chunk": (b"POST / HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
    "another encoding": (b"POST / HTTP/1.1\r\n%bTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "two encodings": (b"POST / HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "a folded line": (b"GET / HTTP/1.1\r\n%bX: a\r\n\tb: c\r\nContent-Length : 3\r\n\r\nabc", 400),
    "a space in a name": (b"GET / HTTP/1.1\r\n%bContent Length: 3\r\n\r\n", 400),
    "a null in a value": (b"GET / HTTP/1.1\r\n%bX: a\0b\r\n\r\n", 400),
    "a bare line feed in a value": (b"GET / HTTP/1.1\r\n%bX: a\rb\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\n%bHost: elsewhere\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "a head without end": (b"GET / HTTP/1.1\r\n%bX: " + b"a" * 2_000_000, 400),
    "a line without end": (b"GET /" + b"a" * 2_000_000, 400),
    "headers without end": (b"GET / HTTP/1.1\r\n%b" + b"a: b\r\n" * 100_000, 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 4, 400),
    "bytes": (bytes(range(256)) * 300, 400),
}  # fmt: skip
"""By kind: what is sent (the right key at %b), and the status of the only answer."""


def test_what_two_servers_could_read_differently_is_refused(victim: Server, unharmed: None) -> None:
    """Once, and the connection is closed: nothing that follows is read as a request."""
    found = {
        kind: statuses(exchange(victim.url, sent.replace(b"%b", AUTHORIZED))) for kind, (sent, _) in REFUSED.items()
    }
    assert found == {kind: [status] for kind, (_, status) in REFUSED.items()}
    for large in (b"X: " + b"a" * 20_000 + b"\r\n", b"a: b\r\n" * 3000):
        assert statuses(exchange(victim.url, request(b"GET /health", large))) in ([400], [431])
    many = request(b"GET /health") * 50 + request(b"GET /v1/models", b"Connection: close\r\n")
    assert statuses(exchange(victim.url, many)) == [200] * 51
    for line in (
        b"TRACE /",
        b"GET /../../etc/passwd",
        b"GET /%00",
        b"GET /v1/models/%ed%a0%80%0a%1b[2J",
        b"CONNECT a:1",
    ):
        (status,) = statuses(exchange(victim.url, request(line, b"Connection: close\r\n")))
        assert 400 <= status < 500, line
    upgrade = (
        b"Upgrade: websocket\r\nConnection: upgrade, close\r\nSec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n"
    )
    for _ in range(200):
        assert statuses(exchange(victim.url, request(b"GET /nothing", upgrade))) == [404]
        assert statuses(exchange(victim.url, b"\x1b[2J\r\n\r\n")) == [400]
    assert "\x1b" not in victim.said()


LONE = "\ud800"
DEEP = "[" * 100_000 + "]" * 100_000
TOOL = {"type": "function", "function": {"name": "a", "parameters": {"a": 1}}}


def deep(levels: int) -> Any:
    """A list in a list in a list, and so on."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


BODIES: list[tuple[str, dict[str, Any], int]] = [
    (CHAT, {"model": LONE}, 404), (CHAT, {"model": "a\n\x1b[2J" + "x" * 500_000}, 404), (TEXT, {"model": LONE, "prompt": "a"}, 404),
    (CHAT, {"messages": [{"role": "user", "content": LONE}]}, 400), (CHAT, {"messages": [{"role": LONE, "content": "a"}]}, 400),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": LONE}]}]}, 400),
    (CHAT, {"messages": [{"role": "user", "content": "a", "name": LONE}]}, 400), (CHAT, {LONE: 1}, 400), (CHAT, {"stop": LONE}, 400),
    (CHAT, {"user": LONE}, 400), (CHAT, {"metadata": {LONE: "a"}}, 400), (CHAT, {"logit_bias": {LONE: 1}}, 400),
    (CHAT, {"chat_template_kwargs": {"a": LONE}}, 400), (CHAT, {"tools": [{**TOOL, "type": LONE}]}, 400), (TEXT, {"prompt": LONE}, 400),
    (TEXT, {"prompt": ["a", LONE]}, 400), (CHAT, {"chat_template_kwargs": {"a": deep(900)}}, 200), (CHAT, {"tools": [{**TOOL, "function": {"name": "a", "parameters": {"a": deep(900)}}}]}, 400), (CHAT, {"prediction": {"a": deep(900)}}, 200),
    (CHAT, {"messages": [{"role": "assistant", "function_call": {"name": "a", "arguments": DEEP}}]}, 400), (TEXT, {"prompt": deep(900)}, 400),
    (TEXT, {"prompt": ["a"] * 50_000}, 400),
    (CHAT, {str(number): 1 for number in range(30_000)}, 400),
    (CHAT, {"top_k": 10**400}, 400), (CHAT, {"top_k": 2**62, "temperature": 1e-3, "repetition_penalty": 5e-324, "min_p": 5e-324}, 200),
    (CHAT, {"chat_template_kwargs": {"chat_template": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"}}, 400),
]  # fmt: skip
"""Route, what differs from a short request, and the status."""


def test_odd_values_are_refused_as_what_they_are(victim: Server, unharmed: None) -> None:
    for route, changed, status in BODIES:
        plain = SHORT if route == CHAT else {"model": "tiny", "prompt": "好", "max_tokens": 2}
        answer = victim.post(route, json={**plain, **changed})
        assert answer.status_code == status and len(answer.content) < 2000, (str(changed)[:80], answer.text[:500])
        assert status == 200 or answer.json()["error"]["message"].isprintable(), answer.text
    for text in (DEEP, '{"model": ' + DEEP + "}", '{"a":' * 100_000, '{"model": "\xed\xa0\x80"}'):
        assert victim.post(CHAT, content=text.encode("latin-1")).status_code == 400


def test_long_prompts_do_not_delay_short_requests(victim: Server, unharmed: None) -> None:
    """20 prompts of 900 KB at once: a short request does not wait until they are tokenised."""
    from transformers import AutoTokenizer

    from hydraft.system.source_tree import TINY

    long = "好 hello " * 75_000
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    start = time.monotonic()
    tokenizer(long)
    tokenised = time.monotonic() - start
    alone = answered(victim)
    bodies = [{**SHORT, "messages": [{"role": "user", "content": long}]}, {"model": "tiny", "prompt": long}]
    found: list[int] = []
    threads = [
        threading.Thread(
            target=lambda kind=kind: found.append(victim.post((CHAT, TEXT)[kind], json=bodies[kind]).status_code)
        )
        for kind in [0, 1] * 10
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    took = answered(victim)
    for thread in threads:
        thread.join()
    # 408: on a busy machine some bodies take longer than the server's patience
    assert len(found) == 20 and set(found) <= {400, 408} and took < 4 * alone + 5 * tokenised, (took, alone, tokenised)


def test_a_server_that_may_open_too_few_files_is_refused(adapters: list[Path]) -> None:
    done = run_script("infer.py", "mode=serve", f"run={adapters[0]}", TEST_OPEN_FILES="64")
    assert done.returncode == 2 and "may open 64 files (ulimit -n), and needs 128" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
