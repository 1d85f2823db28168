"""mode=verify of infer.py: a server's answers beside the model's own, against our server and one that answers as Ollama does."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hydraft.config.choices import InferMode, Precision
from hydraft.config.infer import InferConfig
from hydraft.config.verify import VerifyConfig
from hydraft.errors import ConfigError, RunFailed
from hydraft.infer import generate
from hydraft.infer.load import load
from hydraft.infer.resolve import find
from hydraft.infer.verify.run import run
from serving import KEY, Server

QUESTIONS = ["判断这条评论的情感：房间很干净，服务也热情", "用一句话介绍杭州。", "Name a colour.", "1 + 1 = ?"]


@pytest.fixture
def options(adapters: list[Path], tmp_path: Path) -> InferConfig:
    """Options for the first adapter and four prompts, without an address."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in QUESTIONS))
    return InferConfig(
        mode=InferMode.verify, run=str(adapters[0]), input=str(prompts), dtype=Precision.fp32, device="cpu", max_new_tokens=16
    )  # fmt: skip


def verify(options: InferConfig, address: str, **settings: Any) -> None:
    options.against = address
    options.verify = VerifyConfig(**settings)
    run(find(options), options)


def test_the_served_adapter_answers_as_the_model(
    server: Server, options: InferConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYDRAFT_API_KEY", KEY)
    verify(options, server.url)
    said = capfd.readouterr().out
    assert "the server answers as the trained model does" in said
    assert re.search(r"identical answers *│ *4 │", said) and re.search(
        r"log-probabilities, mean difference *│ \d\.\de-0[5-9]", said
    )


def test_another_adapter_is_out_of_bounds(
    server: Server, options: InferConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYDRAFT_API_KEY", KEY)
    with pytest.raises(RunFailed, match="4 answers differ by more than rounding: another adapter") as failed:
        verify(options, server.url, model="blue")
    assert failed.value.code == 1
    assert "prompt 1, token 1: ours" in capfd.readouterr().out


def test_the_server_is_named_in_errors(server: Server, options: InferConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYDRAFT_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"HTTP 401: give its API key in verify\.api_key_file"):
        verify(options, server.url)
    monkeypatch.setenv("HYDRAFT_API_KEY", KEY)
    with pytest.raises(ConfigError, match=r"verify.model=green: .* which are: red, blue, tiny"):
        verify(options, server.url, model="green")


@contextmanager
def ollama(answer: Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]) -> Iterator[str]:
    """A server of one model, "mine:latest", that answers a chat request with a status and a value."""

    class Handler(BaseHTTPRequestHandler):
        def send(self, status: int, value: dict[str, Any]) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 307:
                self.send_header("Location", "http://elsewhere.example/")
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.send(200, {"object": "list", "data": [{"id": "mine:latest", "object": "model"}]})

        def do_POST(self) -> None:
            self.send(*answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def log_message(self, *_: object) -> None:
            pass

    stub = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=stub.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{stub.server_address[1]}/v1"
    finally:
        stub.shutdown()
        stub.server_close()
        thread.join()


def without_logprobs(
    options: InferConfig, changed: Callable[[str], str] = str, more_tokens: int = 0
) -> Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]:
    """What ``generate`` answers, in Ollama's form: no logprobs, and a request for them is refused. ``changed``: of each answer."""
    loaded = load(find(options), options)
    selected = loaded.select()

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if "logprobs" in body:
            return 400, {"error": {"message": "logprobs is not supported"}}
        assert body["temperature"] == 0 and body["model"] == "mine:latest"
        options.prompt = body["messages"][-1]["content"]
        ids = generate.prompt_ids(generate.ask(options.prompt), selected.tokenizer, selected.data)
        made = generate.answer(loaded, selected, ids, options)
        text = changed(generate.generation.read_answer(selected.tokenizer, ids, made).text)
        finish = "length" if len(made) == options.max_new_tokens else "stop"
        return 200, {
            "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish}],
            "usage": {"prompt_tokens": len(ids) + more_tokens, "completion_tokens": len(made)},
        }

    return answer


def test_a_server_without_logprobs(options: InferConfig, capfd: pytest.CaptureFixture[str]) -> None:
    with ollama(without_logprobs(options)) as address:
        verify(options, address)
    said = capfd.readouterr().out
    assert "the server answers as the trained model does" in said and "not returned" in said


def test_a_wrong_template_is_found(options: InferConfig, capfd: pytest.CaptureFixture[str]) -> None:
    with (
        ollama(without_logprobs(options, lambda text: f"不{text}", more_tokens=7)) as address,
        pytest.raises(RunFailed, match="4 answers differ, and so do prompts: the chat template is a wrong one"),
    ):
        verify(options, address)
    said = capfd.readouterr().out
    assert "the server counts other prompt tokens for 4 of 4 prompts" in said and "prompt 1, token 1: ours" in said


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((307, {}), "redirects to http://elsewhere.example/, which is not followed"),
        ((500, {"error": "no memory"}), "HTTP 500: no memory"),
        ((200, {"choices": []}), "is not OpenAI's API"),
    ],
)
def test_a_server_that_cannot_answer(options: InferConfig, reply: tuple[int, dict[str, Any]], message: str) -> None:
    with ollama(lambda _: reply) as address, pytest.raises(ConfigError, match=message):
        verify(options, address)


def test_no_server(options: InferConfig) -> None:
    with ollama(lambda _: (200, {})) as address:
        pass
    with pytest.raises(ConfigError, match=r"cannot be reached \(.*refused\): start the server"):
        verify(options, address)
