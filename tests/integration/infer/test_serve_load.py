"""Many concurrent clients, some of them harmful: every request gets a response, and the server stays usable."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CHECKS, load_all_checks

from conftest import SCALE, wait_for
from serving import KEY, Server, bearer
from test_serve import ASK, CHAT, endless

JSON = {"Content-Type": "application/json"}


def one(server: Server, number: int) -> str:
    """Send one random kind of request, and return its kind and status."""
    generator = random.Random(number)
    kind = generator.choice(
        ["stream", "stream", "whole", "whole", "many", "leaves", "leaves", "long", "broken", "wrong key", "large"]
    )
    body = endless(
        model=generator.choice(["tiny", "red", "blue"]), max_tokens=generator.randint(1, 40), temperature=1.0
    )
    with httpx.Client(base_url=server.url, headers={**bearer(), **JSON}, timeout=120 * SCALE) as client:
        if kind == "stream":
            response = client.post(CHAT, json={**body, "stream": True})
            assert response.status_code == 429 or response.text.endswith("data: [DONE]\n\n"), response.text[-200:]
        elif kind == "leaves":
            with client.stream("POST", CHAT, json={**body, "stream": True, "max_tokens": 400}) as response:
                for _ in zip(range(generator.randint(0, 5)), response.iter_lines(), strict=False):
                    pass
        elif kind == "long":
            response = client.post(CHAT, json={**body, "messages": [{"role": "user", "content": "长" * 5000}]})
        elif kind == "broken":
            response = client.post(CHAT, content=json.dumps(body)[: generator.randint(0, 60)])
        elif kind == "wrong key":
            response = client.post(CHAT, json=body, headers=bearer("wrong"))
        elif kind == "large":
            response = client.post(CHAT, content=b"x" * 10_000_000)
        else:
            response = client.post(CHAT, json={**body, "n": 3 if kind == "many" else 1})
    expected = {"long": 400, "broken": 400, "wrong key": 401, "large": 413}.get(kind, 200)
    assert response.status_code == expected or (expected == 200 and response.status_code == 429), (kind, response.text)
    return f"{kind} {response.status_code}"


def test_two_hundred_requests_of_all_kinds_leave_nothing_running(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    with ThreadPoolExecutor(32) as clients:
        first = Counter(clients.map(lambda number: one(server, number), range(60)))
        wait_for(server.idle, 60, "an idle server")
        before = process.memory_info().rss
        seen = first + Counter(clients.map(lambda number: one(server, number), range(60, 260)))
    assert sum(seen.values()) == 260 and seen["stream 200"] and seen["whole 200"] and seen["leaves 200"], seen
    wait_for(server.idle, 60, "an idle server")
    grown = process.memory_info().rss - before
    assert grown < 64 * 2**20, f"memory grew by {grown / 2**20:.0f} MiB in 200 requests"
    assert server.post(CHAT, json={"model": "tiny", "messages": ASK, "max_tokens": 3}).status_code == 200


CHECK_NAMES = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_every_route_conforms_to_its_openapi_schema(server: Server, mode: schemathesis.GenerationMode) -> None:
    load_all_checks()
    checks = CHECKS.get_by_names(CHECK_NAMES)
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=bearer())
    statuses = Counter[int]()
    for found in schema.get_all_operations():
        if mode is schemathesis.GenerationMode.NEGATIVE and not found.ok().body:
            continue  # nothing can be invalid

        @given(case=found.ok().as_strategy(generation_mode=mode))
        @settings(
            max_examples=8, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        def conforms(case: Any) -> None:
            if mode is schemathesis.GenerationMode.POSITIVE and isinstance(case.body, dict):
                case.body |= {"model": "tiny", "max_tokens": 3, "n": 1}  # so that an answer is short
                case.body.pop("max_completion_tokens", None)
                case.body["stream"] = sum(statuses.values()) % 2 == 1  # both kinds of answers
            response = case.call(headers=bearer(), timeout=60 * SCALE)
            statuses[response.status_code] += 1
            case.validate_response(response, checks=checks)

        conforms()
    assert statuses[400 if mode is schemathesis.GenerationMode.NEGATIVE else 200], statuses


@pytest.fixture
def own_server(adapters: list[Path], tmp_path: Path) -> Iterator[Server]:
    """A separate server that the test may end."""
    made = Server(adapters, tmp_path / "streams", ("serve.max_running=4", "serve.drain=12"))
    try:
        yield made.start()
    finally:
        made.end()


def test_sigterm_lets_running_answers_finish_and_fails_the_rest(own_server: Server) -> None:
    results: list[str] = []

    def ask(tokens: int, stream: bool) -> None:
        body = endless(max_tokens=tokens, stream=stream, messages=[{"role": "user", "content": "好"}])
        try:
            response = own_server.post(CHAT, json=body)
        except httpx.TransportError as error:
            results.append(f"lost: {error!r}")
            return
        if stream:
            results.append("finished" if '"finish_reason":"length"' in response.text else response.text[-300:])
        else:
            results.append("finished" if response.status_code == 200 else response.text)

    threads = [threading.Thread(target=ask, args=(60, index % 2 == 0)) for index in range(4)]
    threads += [threading.Thread(target=ask, args=(480, index % 2 == 0)) for index in range(36)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    there = ("hydraft_running", "hydraft_waiting")
    wait_for(lambda: sum(map(own_server.metric, there)) + len(results) >= 40, 30, "all of them")
    own_server.process.terminate()
    for thread in threads:
        thread.join(60)
    assert own_server.end() == 0, own_server.said()
    assert "shutting down: " in own_server.said() and "Traceback" not in own_server.said()
    assert len(results) == 40 and not [t for t in results if t.startswith("lost")], Counter(results)
    assert Counter(results)["finished"] >= 4 and all(t == "finished" or "not finished in time" in t for t in results), (
        Counter(results)
    )
    with pytest.raises(httpx.ConnectError):
        own_server.post(CHAT, json=endless())


def test_the_key_is_never_printed(server: Server) -> None:
    assert KEY not in server.said()
