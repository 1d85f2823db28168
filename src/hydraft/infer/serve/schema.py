"""Request bodies, by OpenAI's names: each is used or refused; those without influence on the text are accepted and ignored.

The sampling parameters that OpenAI's API does not have (``top_k``, ``chat_template_kwargs``, …) are vLLM's, by its names.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hydraft.data.formats import RESERVED
from hydraft.data.records import Turn
from hydraft.infer.serve.fields import Strict, check_unicode, in_slices, invalid, only, unsupported
from hydraft.infer.serve.messages import Message, Tool, turns_of

Stop = Annotated[str, Field(min_length=1, max_length=256)]
INT64 = 2**63
Id = Annotated[int, Field(ge=0, lt=INT64)]
MOST = 10_000
"""Messages of a request, or its prompts: to read so many takes a tenth of a second, in which nothing else is read."""
MOST_TOOLS = 1000
NO_CHOICE = "the model chooses whether to call a tool: use 'auto', or 'none' for no calls"
NO_FORMAT = "answers are not constrained to a format: ask for it in the messages, and use {'type': 'text'}"
Texts = Annotated[list[str], Field(min_length=1, max_length=MOST, fail_fast=True)]
Ids = Annotated[list[Id], Field(min_length=1, fail_fast=True)]
Bias = dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]]
TextOnly = only("text", reason="the model answers in text only")


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Accepted and ignored: nothing is padded here."""


class Request(Strict):
    """The fields of both kinds of completion."""

    model: str
    max_tokens: int | None = Field(None, ge=1, lt=INT64)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=INT64)
    """Only so many of the likeliest tokens are sampled from. 0 and -1: all."""
    min_p: float | None = Field(None, ge=0, le=1)
    """Only tokens with at least this share of the likeliest token's probability are sampled from."""
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    """Divides positive scores, and multiplies negative ones, of the tokens of prompt and answer."""
    n: int | None = Field(None, ge=1, le=128)
    stop: Stop | Annotated[list[Stop], Field(max_length=4, fail_fast=True)] | None = None
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: in_slices(Bias) | None = None  # type: ignore[valid-type]
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_unicode(cls, value: Any) -> Any:
        if isinstance(value, dict):
            check_unicode(
                {name: each for name, each in value.items() if name != "model"}
            )  # there is no such model: 404
        return value

    @property
    def stops(self) -> list[str]:
        """``stop`` as a list."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def limit(self) -> int | None:
        """The requested maximum of tokens per answer."""
        return self.max_tokens

    @property
    def top(self) -> int | None:
        """How many of the likeliest tokens to return logprobs for; None for no logprobs."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _streams(self) -> "Request":
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "only allowed with stream=true")
        return self


class TextFormat(Strict):
    type: only("text", reason=NO_FORMAT)  # type: ignore[valid-type]
    json_schema: unsupported(NO_FORMAT) = None  # type: ignore[valid-type]


class ChatRequest(Request):
    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1, max_length=MOST)
    max_completion_tokens: int | None = Field(None, ge=1, lt=INT64)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: TextFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS, fail_fast=True)] | None = None
    tool_choice: only("none", "auto", reason=NO_CHOICE) = None  # type: ignore[valid-type]
    parallel_tool_calls: bool | None = None
    """Accepted; with false, calls after the first are left out."""
    functions: unsupported("deprecated by OpenAI: use tools") = None  # type: ignore[valid-type]
    function_call: only("none", "auto", reason="deprecated by OpenAI: use tool_choice") = None  # type: ignore[valid-type]
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """``none`` turns thinking off, the others turn it on; a template with degrees of effort gets the value."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables for the chat template, such as ``{"enable_thinking": false}``."""
    modalities: Annotated[list[TextOnly], Field(fail_fast=True)] | None = None  # type: ignore[valid-type]
    audio: unsupported("the model answers in text only") = None  # type: ignore[valid-type]
    web_search_options: unsupported("the server does not search the web") = None  # type: ignore[valid-type]
    moderation: unsupported("the server does not moderate") = None  # type: ignore[valid-type]
    verbosity: only("medium", reason="the model has no degrees of verbosity: ask for it in the messages") = None  # type: ignore[valid-type]
    prediction: dict[str, Any] | None = None
    """Accepted and ignored: it makes answers faster, not different."""
    metadata: in_slices(dict[str, str]) | None = None  # type: ignore[valid-type]
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None

    @property
    def limit(self) -> int | None:
        """``max_completion_tokens``, the newer name, or ``max_tokens``."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        """``top_logprobs`` if ``logprobs`` is true."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def turns(self) -> list[Turn]:
        """The turns of ``messages``."""
        return turns_of(self.messages)

    @property
    def offered(self) -> tuple[dict[str, Any], ...]:
        """The tools that the model may call."""
        return () if self.tool_choice == "none" else tuple(tool.rendered() for tool in self.tools or [])

    @model_validator(mode="after")
    def _with_others(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs", "only allowed with logprobs=true")
        for name in RESERVED:  # a template of the client's own could compute for ever
            if name in (self.chat_template_kwargs or {}):
                raise invalid(f"chat_template_kwargs.{name}", "is not a variable of a chat template")
        turns_of(self.messages)  # raises what is wrong between messages
        return self


class CompletionRequest(Request):
    prompt: (
        str
        | Texts
        | Ids
        | Annotated[list[Annotated[Ids, Field(min_length=1)]], Field(min_length=1, max_length=MOST, fail_fast=True)]
    )
    logprobs: int | None = Field(None, ge=0, le=5)
    best_of: only(1, reason="every answer is returned: use n") = None  # type: ignore[valid-type]
    echo: only(False, reason="the prompt is not repeated") = None  # type: ignore[valid-type]
    suffix: only("", reason="text cannot be inserted ahead of a suffix") = None  # type: ignore[valid-type]

    @property
    def top(self) -> int | None:
        """``logprobs``, which is a number in completions."""
        return self.logprobs

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """``prompt`` as a list of texts or of token lists."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt
