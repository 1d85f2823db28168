"""Many clients at once, and harmful ones: every request gets a response, and the server is unchanged afterwards."""

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
    """One request of some kind, and what became of it."""
    drawn = random.Random(number)
    kind = drawn.choice(
        ["stream", "stream", "whole", "whole", "many", "leaves", "leaves", "long", "broken", "wrong key", "large"]
    )
    asked = endless(model=drawn.choice(["tiny", "red", "blue"]), max_tokens=drawn.randint(1, 40), temperature=1.0)
    with httpx.Client(base_url=server.url, headers={**bearer(), **JSON}, timeout=120 * SCALE) as client:
        if kind == "stream":
            response = client.post(CHAT, json={**asked, "stream": True})
            assert response.status_code == 429 or response.text.endswith("data: [DONE]\n\n"), response.text[-200:]
        elif kind == "leaves":
            with client.stream("POST", CHAT, json={**asked, "stream": True, "max_tokens": 400}) as response:
                for _ in zip(range(drawn.randint(0, 5)), response.iter_lines(), strict=False):
                    pass
        elif kind == "long":
            response = client.post(CHAT, json={**asked, "messages": [{"role": "user", "content": "长" * 5000}]})
        elif kind == "broken":
            response = client.post(CHAT, content=json.dumps(asked)[: drawn.randint(0, 60)])
        elif kind == "wrong key":
            response = client.post(CHAT, json=asked, headers=bearer("wrong"))
        elif kind == "large":
            response = client.post(CHAT, content=b"x" * 10_000_000)
        else:
            response = client.post(CHAT, json={**asked, "n": 3 if kind == "many" else 1})
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
    assert grown < 64 * 2**20, f"{grown / 2**20:.0f} MiB more after 200 requests"
    assert server.post(CHAT, json={"model": "tiny", "messages": ASK, "max_tokens": 3}).status_code == 200


KEPT = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_every_route_conforms_to_its_openapi_schema(server: Server, mode: schemathesis.GenerationMode) -> None:
    load_all_checks()
    checks = CHECKS.get_by_names(KEPT)
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=bearer())
    statuses = Counter[int]()
    for found in schema.get_all_operations():
        if mode is schemathesis.GenerationMode.NEGATIVE and not found.ok().body:
            continue  # nothing to get wrong

        @given(case=found.ok().as_strategy(generation_mode=mode))
        @settings(
            max_examples=8, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        def keeps_to_it(case: Any) -> None:
            if mode is schemathesis.GenerationMode.POSITIVE and isinstance(case.body, dict):
                case.body |= {"model": "tiny", "max_tokens": 3, "n": 1}  # so that it is answered, and soon
                case.body.pop("max_completion_tokens", None)
            response = case.call(headers=bearer(), timeout=60 * SCALE)
            statuses[response.status_code] += 1
            case.validate_response(response, checks=checks)

        keeps_to_it()
    assert statuses[400 if mode is schemathesis.GenerationMode.NEGATIVE else 200], statuses


@pytest.fixture
def another(adapters: list[Path], tmp_path: Path) -> Iterator[Server]:
    """A server to end."""
    made = Server(adapters, tmp_path / "streams", ("serve.max_running=4", "serve.drain=12"))
    try:
        yield made.start()
    finally:
        made.end()


def test_sigterm_lets_running_answers_finish_and_fails_the_rest(another: Server) -> None:
    told: list[str] = []

    def ask(tokens: int, stream: bool) -> None:
        body = endless(max_tokens=tokens, stream=stream, messages=[{"role": "user", "content": "好"}])
        try:
            response = another.post(CHAT, json=body)
        except httpx.TransportError as error:
            told.append(f"lost: {error!r}")
            return
        if stream:
            told.append("finished" if '"finish_reason":"length"' in response.text else response.text[-300:])
        else:
            told.append("finished" if response.status_code == 200 else response.text)

    threads = [threading.Thread(target=ask, args=(60, index % 2 == 0)) for index in range(4)]
    threads += [threading.Thread(target=ask, args=(480, index % 2 == 0)) for index in range(36)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    there = ("hydraft_running", "hydraft_waiting")
    wait_for(lambda: sum(map(another.metric, there)) + len(told) >= 40, 30, "all of them")
    another.process.terminate()
    for thread in threads:
        thread.join(60)
    assert another.end() == 0, another.said()
    assert "shutting down: " in another.said() and "Traceback" not in another.said()
    assert len(told) == 40 and not [t for t in told if t.startswith("lost")], Counter(told)
    assert Counter(told)["finished"] >= 4 and all(t == "finished" or "not finished in time" in t for t in told), (
        Counter(told)
    )
    with pytest.raises(httpx.ConnectError):
        another.post(CHAT, json=endless())


def test_the_key_is_never_printed(server: Server) -> None:
    assert KEY not in server.said()
