"""The server, tested with OpenAI's own client."""

import base64
import json
import threading
from typing import Any

import httpx
import openai
import pytest

from conftest import SCALE, run_script, wait_for
from ports import Listening, listening
from serving import KEY, Server, bearer

CHAT = "/v1/chat/completions"
ASK: Any = [{"role": "user", "content": "判断这条评论的情感：房间很干净，服务也热情"}]


def answer_text(server: Server, **options: Any) -> str:
    """The text of the first choice."""
    settings = {"model": "tiny", "messages": ASK, "max_tokens": 24, "temperature": 0, **options}
    return server.client().chat.completions.create(**settings).choices[0].message.content


def endless(**options: Any) -> dict[str, Any]:
    """A request whose answer has the maximum length: the end token is never sampled."""
    return {"model": "tiny", "messages": ASK, "max_tokens": 400, "logit_bias": {"2": -100}, **options}


def refused(server: Server, **options: Any) -> dict[str, Any]:
    """The error of a request that is refused with 400."""
    response = server.post(CHAT, json={"model": "tiny", "messages": ASK, "max_tokens": 2, **options})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    return error


def test_it_listens_on_one_port_of_loopback(server: Server) -> None:
    pid, port = server.process.pid, int(server.url.rpartition(":")[2])
    assert listening(pid) == [Listening(pid, "tcp", "127.0.0.1", port)]


def test_the_base_and_its_adapters_answer_by_name(server: Server) -> None:
    assert [model.id for model in server.client().models.list()] == ["red", "blue", "tiny"]
    assert server.client().models.retrieve("red").owned_by == "hydraft"
    assert len({answer_text(server, model=name) for name in ("tiny", "red", "blue")}) == 3
    with pytest.raises(openai.NotFoundError, match=r"there are: red, blue, tiny"):
        answer_text(server, model="green")


def test_a_stream_equals_the_complete_response(server: Server) -> None:
    settings: Any = {"model": "tiny", "messages": ASK, "max_tokens": 24, "temperature": 0}
    complete = server.client().chat.completions.create(**settings)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *events, last = server.client().chat.completions.create(**settings, **options)
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(e.choices[0].delta.content or "" for e in events) == complete.choices[0].message.content
    assert [e.choices[0].finish_reason for e in events if e.choices[0].finish_reason] == [
        complete.choices[0].finish_reason
    ]
    assert last.choices == [] and last.usage == complete.usage and complete.usage.completion_tokens <= 24
    raw = server.post(CHAT, json={**settings, "stream": True})
    assert raw.headers["content-type"].startswith("text/event-stream")
    *events, done, nothing = raw.text.split("\n\n")
    assert done == "data: [DONE]" and nothing == "" and all(json.loads(e.removeprefix("data: ")) for e in events)


def test_stop_sequences_end_an_answer_and_are_removed(server: Server) -> None:
    text = answer_text(server)
    for stop in (text[5], text[4:7], [text[6:10], "not there"]):
        first = stop if isinstance(stop, str) else stop[0]
        answer = server.client().chat.completions.create(
            model="tiny", messages=ASK, max_tokens=24, temperature=0, stop=stop
        )
        assert answer.choices[0].message.content == text[: text.index(first)]
        assert answer.choices[0].finish_reason == "stop"


def test_a_seed_gives_the_same_answers_alone_and_in_a_batch(server: Server) -> None:
    body: Any = {"model": "red", "messages": ASK, "max_tokens": 16, "temperature": 1.5, "seed": 7, "n": 3}
    client = server.client()
    alone = [choice.message.content for choice in client.chat.completions.create(**body).choices]
    assert len(set(alone)) == 3
    noise = [
        threading.Thread(target=answer_text, args=(server,), kwargs={"temperature": 1.0, "model": m})
        for m in ("tiny", "blue")
    ]
    for thread in noise:
        thread.start()
    assert [choice.message.content for choice in client.chat.completions.create(**body).choices] == alone
    for thread in noise:
        thread.join()
    other = client.chat.completions.create(**{**body, "seed": 8}).choices
    assert [choice.message.content for choice in other] != alone


def test_logprobs_and_completions(server: Server) -> None:
    answer = server.client().chat.completions.create(
        model="tiny", messages=ASK, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    )
    entries = answer.choices[0].logprobs.content
    assert "".join(e.token for e in entries) == answer.choices[0].message.content
    assert all(e.logprob == e.top_logprobs[0].logprob <= 0 and len(e.top_logprobs) == 3 for e in entries)  # greedy
    assert bytes(entries[0].bytes).decode() == entries[0].token
    texts = server.client().completions.create(
        model="tiny", prompt=["你好", "再见"], max_tokens=6, n=2, logprobs=2, seed=1
    )
    assert [choice.index for choice in texts.choices] == [0, 1, 2, 3] and texts.usage.prompt_tokens == 4
    logprobs = texts.choices[3].logprobs
    assert [len(part) for part in (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset)] == [
        len(logprobs.tokens)
    ] * 3
    stream = server.client().completions.create(
        model="tiny", prompt=[5, 6, 7], max_tokens=6, temperature=0, stream=True
    )
    complete = server.client().completions.create(model="tiny", prompt=[[5, 6, 7]], max_tokens=6, temperature=0)
    assert "".join(event.choices[0].text for event in stream) == complete.choices[0].text


def test_request_parameters_are_used_or_refused_by_name(server: Server) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": ASK[0]["content"]}]}]
    defaults: Any = {"user": "u", "presence_penalty": 0, "frequency_penalty": 0, "tools": [], "metadata": {"a": "b"}}
    assert answer_text(server, messages=parts, max_completion_tokens=24, **defaults) == answer_text(server)
    assert "Unrecognized request argument supplied: top_a" in refused(server, top_a=5)["message"]
    for name, value in {
        "temperature": 3, "top_p": -0.1, "n": 0, "max_tokens": "5", "stop": ["a"] * 5, "seed": 2**63, "tools": [{}], "top_k": -2, "min_p": 2,
        "repetition_penalty": 0, "logit_bias": {"x": 1},
        "response_format": {"type": "json_object"}, "messages": [], "model": None,
    }.items():  # fmt: skip
        assert refused(server, **{name: value})["param"].split(".")[0] == name
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]
    refused(server, messages=image)  # no path in a request is ever opened
    assert refused(server, stream_options={"include_usage": True})["param"] == "stream_options"
    tool = {"type": "function", "function": {"name": "weather"}}
    assert "no place for tools" in refused(server, tools=[tool])["message"]
    refused(server, logit_bias={"99999": 1})
    assert refused(server, messages=[{"role": "user", "content": "\ud800"}])["message"].endswith("not Unicode text.")


def test_the_clients_own_answers_are_accepted_in_the_next_request(server: Server) -> None:
    messages: list[Any] = list(ASK)
    settings: Any = {"model": "tiny", "temperature": 0, "max_tokens": 8}
    texts = []
    for _ in range(3):
        message = server.client().chat.completions.create(messages=messages, **settings).choices[0].message
        texts.append(message.content)
        messages += [message, {"role": "user", "content": "还有呢"}]  # as in OpenAI's examples
    plain: list[Any] = [*ASK, {"role": "assistant", "content": texts[0]}, {"role": "user", "content": "还有呢"}]
    assert answer_text(server, messages=plain, max_tokens=8) == texts[1]
    dumped = server.client().chat.completions.create(messages=messages, **settings).choices[0].message.model_dump()
    assert dumped["refusal"] is None and answer_text(server, messages=[*messages, dumped, ASK[0]])


def test_sampling_parameters_of_vllm(server: Server) -> None:
    greedy = answer_text(server)
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        assert answer_text(server, temperature=1.5, extra_body=extra) == greedy
    neutral = {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "chat_template_kwargs": {"unknown": 1}}
    assert answer_text(server, extra_body=neutral) == greedy
    assert answer_text(server, extra_body={"repetition_penalty": 2}) != greedy


def test_head_and_options(server: Server) -> None:
    for path, allowed in (
        ("/health", "GET, HEAD, OPTIONS"),
        ("/v1/models", "GET, HEAD, OPTIONS"),
        (CHAT, "POST, OPTIONS"),
    ):
        answer = httpx.options(f"{server.url}{path}", headers=bearer())
        assert (answer.status_code, answer.headers["allow"], answer.content) == (204, allowed, b"")
        head = httpx.head(f"{server.url}{path}", headers=bearer())
        assert head.status_code == (405 if path == CHAT else 200) and head.content == b""
    assert httpx.options(f"{server.url}/nothing", headers=bearer()).status_code == 404
    assert (
        "access-control-allow-origin"
        not in httpx.options(f"{server.url}{CHAT}", headers={**bearer(), "Origin": "http://a"}).headers
    )


def test_limits_are_reported_by_parameter(server: Server) -> None:
    long = refused(server, messages=[{"role": "user", "content": "你好" * 400}])
    assert long["code"] == "context_length_exceeded" and "maximum context length is 512" in long["message"]
    assert refused(server, max_tokens=511)["code"] == "context_length_exceeded"
    assert "at most 1024 tokens" in refused(server, max_tokens=2000)["message"]
    assert "at most 12" in refused(server, n=13)["message"]
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "x" * 10_000_000}]})
    large = server.post(CHAT, content=body.encode())
    assert large.status_code == 413 and "serve.max_body" in large.json()["error"]["message"]
    for content in (b"{", b"[]", b"\xff", b"", b"[" * 5000, b'{"model": NaN}', b"1" * 5000):
        wrong = server.post(CHAT, content=content)
        assert wrong.status_code == 400 and wrong.json()["error"]["message"], content
    unasked = httpx.post(f"{server.url}{CHAT}", content=json.dumps(endless()), headers=bearer())
    assert unasked.status_code == 400  # requests that a foreign web page could send
    assert httpx.get(f"{server.url}/nothing", headers=bearer()).json()["error"]["message"] == "Not Found"
    assert httpx.get(f"{server.url}{CHAT}", headers=bearer()).status_code == 405


def test_a_full_server_sends_retry_after_and_a_disconnect_frees_its_slot(server: Server) -> None:
    wait_for(server.idle, 30, "an idle server")
    with httpx.Client(base_url=server.url, headers=bearer(), timeout=60 * SCALE) as client:
        with client.stream("POST", CHAT, json=endless(n=12, stream=True)) as stream:
            assert stream.status_code == 200, stream.read()
            lines = stream.iter_lines()  # keeps a reference: httpx closes the stream with it
            next(lines)
            assert server.metric("hydraft_running") == 6 and server.metric("hydraft_waiting") == 6
            full = server.post(CHAT, json=endless())
            assert full.status_code == 429 and int(full.headers["Retry-After"]) >= 1
            assert full.json()["error"]["code"] == "rate_limit_exceeded"
        wait_for(server.idle, 30, "free slots after a stream was closed")
        with pytest.raises(httpx.ReadTimeout):
            client.post(CHAT, json=endless(n=12), timeout=0.5)
        wait_for(server.idle, 30, "free slots after a request was cancelled")
    assert server.metric("hydraft_left_total") >= 2
    assert answer_text(server)


def test_requests_need_the_key_and_a_local_host_name(server: Server) -> None:
    for path in ("/", "/v1/models", "/metrics", "/openapi.json", "/nothing"):
        for header in ({}, bearer("wrong"), {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer é"}):
            raw = {name: value.encode("latin-1") for name, value in header.items()}
            assert httpx.get(f"{server.url}{path}", headers=raw).status_code == 401, (path, header)
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    basic = {"Authorization": "Basic " + base64.b64encode(f"me:{KEY}".encode()).decode()}  # as a browser sends it
    assert httpx.get(f"{server.url}/", headers=basic).status_code == 200
    assert httpx.get(f"{server.url}/health", headers={"Host": "elsewhere.example"}).status_code == 403
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("serve.host=0.0.0.0", "needs an API key"),
        ("serve.api_key_file=/nowhere", "cannot be read"),
        ("serve.port=70000", "serve.port=70000"),
        ("temperature=0.5", "each request has its own"),
        ("serve.batch_tokens=4", "at least serve.max_running=16"),
    ],
)
def test_a_server_that_cannot_start_is_refused(adapters: Any, setting: str, named: str) -> None:
    done = run_script("infer.py", "mode=serve", f"run={adapters[0]}", setting)
    assert done.returncode == 2 and named in done.stderr and len(done.stderr.splitlines()) == 1
