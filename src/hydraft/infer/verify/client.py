"""A client of OpenAI-compatible servers (vLLM, Ollama, ``mode=serve``), with the standard library alone. No torch.

Redirects are not followed: they would take the API key, and the records, to another address.
"""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from hydraft.errors import ConfigError
from hydraft.infer.serve.text import printable

MOST_BYTES = 64 << 20
"""Bytes of a response that are read."""
OPTIONAL = ("logprobs", "top_logprobs", "top_k", "repetition_penalty")
"""Fields that a server may not know; a request that is refused is sent again without them."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token of a server's answer."""

    text: str
    logprob: float


@dataclass(frozen=True)
class Reply:
    """A server's answer to one prompt."""

    text: str
    thoughts: str
    finish: str
    """``stop``, ``length``, or another reason."""
    prompt_tokens: int | None
    tokens: int | None
    """Of the answer."""
    logprobs: tuple[TokenLogprob, ...]
    """Of each token; empty if the server does not return them."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Refused(Exception):
    """The server refused a request, with an HTTP status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {printable(message)}")
        self.status = status


class Client:
    """One server."""

    def __init__(self, against: str, key: str | None, timeout: float) -> None:
        self.against = against
        base = against.rstrip("/")
        self.base = base if base.endswith("/v1") else f"{base}/v1"
        self.key = key
        self.timeout = timeout
        self.left_out: set[str] = set()
        """Those of ``OPTIONAL`` that this server refuses."""
        self.opener = urllib.request.build_opener(_NoRedirects)

    def model(self, wanted: str | None, own: str) -> str:
        """The name of the model to ask: ``wanted``, else the run's ``own`` name, else the only model of the server.

        Raises:
            ConfigError: there is no such model; the message lists those of the server.
        """
        try:
            found = self._call("/models")
            names = [str(entry["id"]) for entry in found["data"]]
        except Refused as error:
            raise ConfigError(f"against={self.against}: its list of models, {self.base}/models: {error}") from None
        except (KeyError, TypeError):
            raise ConfigError(
                f"against={self.against}: is no OpenAI-compatible server: {self.base}/models has no list"
            ) from None
        name = wanted or own
        if name in names or f"{name}:latest" in names:  # Ollama's tag
            return name
        if wanted is None and len(names) == 1:
            return names[0]
        listed = printable(", ".join(names)) or "none"
        raise ConfigError(
            f"verify.model={wanted or 'null'}: the server has no {name}: give one of its models, which are: {listed}"
        )

    def ask(self, path: str, body: dict[str, Any]) -> Reply:
        """Send a request for one answer to ``/chat/completions`` or ``/completions``.

        Raises:
            ConfigError: the server cannot be reached, refuses the request, or its response is not one of OpenAI's API.
        """
        try:
            found = self._call(path, {name: value for name, value in body.items() if name not in self.left_out})
        except Refused as error:
            if error.status not in (400, 422) or self.left_out:
                raise ConfigError(f"against={self.against}: {self.base}{path}: {error}") from None
            self.left_out = set(OPTIONAL)
            return self.ask(path, body)
        try:
            return _reply(found)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"against={self.against}: {self.base}{path} is not OpenAI's API ({type(error).__name__}: {printable(str(error))})"
            ) from None

    def _call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON value of a response.

        Raises:
            Refused: with an HTTP status.
            ConfigError: the server cannot be reached, needs a key, or sends no JSON.
        """
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.base}{path}", data, headers)
        try:
            with self.opener.open(request, timeout=self.timeout) as response:
                return json.loads(response.read(MOST_BYTES))
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise ConfigError(
                    f"against={self.against}: HTTP {error.code}: give its API key in verify.api_key_file"
                ) from None
            if 300 <= error.code < 400:
                place = printable(str(error.headers.get("Location", "")))
                raise ConfigError(
                    f"against={self.against}: redirects to {place}, which is not followed: give that address"
                ) from None
            raise Refused(error.code, _message(error)) from None
        except (OSError, HTTPException) as error:  # URLError is an OSError
            reason = printable(str(getattr(error, "reason", error) or type(error).__name__))
            raise ConfigError(
                f"against={self.against}: cannot be reached ({reason}): start the server, or give another address"
            ) from None
        except ValueError:
            raise ConfigError(
                f"against={self.against}: {self.base}{path} sends no JSON: give the address of an OpenAI-compatible server"
            ) from None


def _message(error: urllib.error.HTTPError) -> str:
    """The message of an error response."""
    try:
        text = error.read(10_000).decode(errors="replace")
        found = json.loads(text)
        inner = found.get("error", found)
        return str(inner.get("message", inner) if isinstance(inner, dict) else inner)
    except (OSError, ValueError, AttributeError, HTTPException):
        return str(error.reason)


def _reply(found: Any) -> Reply:
    choice, usage = found["choices"][0], found.get("usage") or {}
    message = choice.get("message")
    if message is None:
        text, thoughts = str(choice["text"]), ""
    else:
        text, thoughts = (
            str(message.get("content") or ""),
            str(message.get("reasoning_content") or message.get("reasoning") or ""),
        )
    return Reply(
        text,
        thoughts,
        str(choice.get("finish_reason")),
        usage.get("prompt_tokens"),
        usage.get("completion_tokens"),
        tuple(_logprobs(choice.get("logprobs") or {})),
    )


def _logprobs(found: dict[str, Any]) -> list[TokenLogprob]:
    """Both forms: ``content`` of chat completions, ``tokens`` and ``token_logprobs`` of completions."""
    if found.get("content"):
        return [TokenLogprob(str(entry["token"]), float(entry["logprob"])) for entry in found["content"]]
    tokens, values = found.get("tokens") or [], found.get("token_logprobs") or []
    return [TokenLogprob(str(token), float(value)) for token, value in zip(tokens, values, strict=True)]
