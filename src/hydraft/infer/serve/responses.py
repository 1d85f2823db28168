"""Responses in OpenAI's format: complete, or as server-sent events."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

from pydantic import BaseModel

from hydraft.infer.serve.parsing import Call
from hydraft.infer.serve.sampler import TokenLogprob
from hydraft.infer.serve.text import as_json


@dataclass(frozen=True)
class Chunk:
    """A part of an answer."""

    text: str
    tokens: list[int]
    logprobs: list[TokenLogprob]
    """One per token, if requested."""
    finish: Literal["stop", "length", "tool_calls"] | None = None
    """The finish reason of the last chunk."""
    reasoning: str = ""
    """A part of the thoughts."""
    calls: Sequence[Call] = ()
    """Calls of tools that it completes."""


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class FunctionCall(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: dict[str, Any] | None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(BaseModel):
    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: dict[str, Any] | None


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "hydraft"


class Models(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


Decode = Callable[[int], str]
"""The text of one token."""


@dataclass
class ResponseBuilder:
    """Formats the answers of one request."""

    chat: bool
    id: str
    created: int
    model: str
    prompt_tokens: int
    logprobs: bool
    usage: bool
    """Whether a stream ends with the token counts."""
    decode: Decode
    offsets: dict[int, int] = field(default_factory=dict)
    """Characters of each answer so far, for ``text_offset``."""
    calls: dict[int, int] = field(default_factory=dict)
    """The index of the last call of each answer."""

    def complete(self, answers: list[list[Chunk]]) -> dict[str, Any]:
        """The complete response; ``answers`` are the chunks of each answer."""
        choices = []
        for index, chunks in enumerate(answers):
            text = "".join(chunk.text for chunk in chunks)
            content = {"message": _message(text, chunks)} if self.chat else {"text": text}
            logprobs = self._logprobs(
                index, [t for c in chunks for t in c.tokens], [p for c in chunks for p in c.logprobs]
            )
            choices.append({"index": index, **content, "logprobs": logprobs, "finish_reason": chunks[-1].finish})
        kind = "chat.completion" if self.chat else "text_completion"
        count = sum(len(chunk.tokens) for chunks in answers for chunk in chunks)
        return {**self._frame(kind), "choices": choices, "usage": self._usage(count)}

    def first_event(self, index: int) -> str:
        """The first event of a chat answer, with its role; text completions have none."""
        return self._event({"delta": {"role": "assistant", "content": ""}}, index, None, None) if self.chat else ""

    def events(self, index: int, chunk: Chunk) -> str:
        """The events of a chunk; in a chat the finish reason is a separate event, as in OpenAI's API."""
        logprobs = self._logprobs(index, chunk.tokens, chunk.logprobs)
        if not self.chat:
            return self._event({"text": chunk.text}, index, chunk.finish, logprobs)
        deltas: list[dict[str, Any]] = [{"reasoning_content": chunk.reasoning}] if chunk.reasoning else []
        if chunk.text or (logprobs and logprobs["content"] and not deltas):
            deltas.append({"content": chunk.text})
        for call in chunk.calls:
            number = self.calls[index] = self.calls.get(index, -1) + 1
            deltas.append({"tool_calls": [{"index": number, **_call(call)}]})
        events = ""
        for delta in deltas:
            events += self._event({"delta": delta}, index, None, logprobs)
            logprobs = None
        if chunk.finish:
            events += self._event({"delta": {}}, index, chunk.finish, None)
        return events

    def last_events(self, count: int) -> str:
        """The token counts, if requested, and the end of the stream."""
        counts = {**self._frame(self._chunk), "choices": [], "usage": self._usage(count)}
        return (_sse(counts) if self.usage else "") + "data: [DONE]\n\n"

    @property
    def _chunk(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self, count: int) -> dict[str, int]:
        total = self.prompt_tokens + count
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": count, "total_tokens": total}

    def _event(self, content: dict[str, Any], index: int, finish: str | None, logprobs: dict[str, Any] | None) -> str:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish}
        counts = {"usage": None} if self.usage else {}
        return _sse({**self._frame(self._chunk), "choices": [choice], **counts})

    def _logprobs(self, index: int, tokens: list[int], found: list[TokenLogprob]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        pairs = list(zip(tokens, found, strict=True))
        if self.chat:
            entries = [
                {**self._entry(token, f.logprob), "top_logprobs": [self._entry(*pair) for pair in f.top]}
                for token, f in pairs
            ]
            return {"content": entries, "refusal": None}
        texts = [self.decode(token) for token, _ in pairs]
        *starts, self.offsets[index] = accumulate(map(len, texts), initial=self.offsets.get(index, 0))
        return {
            "tokens": texts,
            "token_logprobs": [f.logprob for _, f in pairs],
            "top_logprobs": [{self.decode(token): logprob for token, logprob in f.top} for _, f in pairs],
            "text_offset": starts,
        }

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.decode(token)
        half = "�" in text  # an incomplete UTF-8 character has no text
        return {"token": text, "logprob": logprob, "bytes": None if half else list(text.encode())}


def _message(text: str, chunks: list[Chunk]) -> dict[str, Any]:
    """The message of a complete chat answer."""
    thoughts = "".join(chunk.reasoning for chunk in chunks)
    calls = [_call(call) for chunk in chunks for call in chunk.calls]
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    if thoughts:
        message["reasoning_content"] = thoughts
    if calls:
        message["tool_calls"] = calls
    return message


def _call(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def failure(body: dict[str, Any]) -> str:
    """An error event in a stream, which clients raise."""
    return _sse(body)


def _sse(value: dict[str, Any]) -> str:
    return f"data: {as_json(value, (',', ':'))}\n\n"
