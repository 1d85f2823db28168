"""The messages and tools of a chat request, by OpenAI's names, and the turns that they become."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from hydraft.data import thinking
from hydraft.data.records import Turn
from hydraft.infer.serve.fields import Strict, invalid, unsupported

Name = Annotated[str, Field(min_length=1, max_length=64)]
NO_TEXT = "the model reads text only: send parts with type=text"


class TextPart(Strict):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: dict[str, Any] | None = None
    """Accepted and ignored: there is no cache of prompts that a client controls."""


class RefusalPart(Strict):
    type: Literal["refusal"]
    refusal: str


class OtherPart(Strict):
    """An image, audio or a file: refused, and nothing that it names is ever opened."""

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, _: Any) -> Any:
        raise PydanticCustomError("refused", NO_TEXT, {})


def _kind(part: Any) -> str:
    kind = part.get("type", "text") if isinstance(part, dict) else getattr(part, "type", "text")
    return kind if kind in ("text", "refusal") else "other"


def _without_refusals(part: Any) -> str:
    return "text" if _kind(part) == "text" else "other"


Other = Annotated[OtherPart, Tag("other"), WithJsonSchema({"not": {}})]
Parts = Annotated[
    list[Annotated[Annotated[TextPart, Tag("text")] | Other, Discriminator(_without_refusals)]],
    Field(fail_fast=True),  # an error for each of a million wrong parts would take seconds
]
AnswerParts = Annotated[
    list[
        Annotated[
            Annotated[TextPart, Tag("text")] | Annotated[RefusalPart, Tag("refusal")] | Other, Discriminator(_kind)
        ]
    ],
    Field(fail_fast=True),
]


def text_of(content: str | list[Any] | None) -> str:
    """A content as one string."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)


class SystemMessage(Strict):
    role: Literal["system", "developer"]
    content: str | Parts
    name: str | None = None

    def turn(self, param: str) -> Turn:
        """The turn that it becomes; ``param`` is its place, for errors."""
        return Turn("system", text_of(self.content))


class UserMessage(Strict):
    role: Literal["user"]
    content: str | Parts
    name: str | None = None

    def turn(self, param: str) -> Turn:
        """The turn that it becomes; ``param`` is its place, for errors."""
        return Turn("user", text_of(self.content))


class FunctionCall(Strict):
    name: Name
    arguments: str

    def call(self, param: str) -> dict[str, Any]:
        """The call with its arguments as an object.

        Raises:
            PydanticCustomError: they are no JSON object.
        """
        try:
            values = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise invalid(param, "must be a JSON object, as a string")
        return {"name": self.name, "arguments": values}


class ToolCall(Strict):
    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(Strict):
    role: Literal["assistant"]
    content: str | AnswerParts | None = None
    refusal: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    function_call: FunctionCall | None = None
    """The older form of a tool call."""
    reasoning_content: str | None = None
    """The thoughts of an answer, as this server returns them."""
    reasoning: str | None = None
    """Another name of ``reasoning_content``."""
    name: str | None = None
    audio: unsupported("the model has no audio: send the answer's text") = None  # type: ignore[valid-type]
    annotations: list[Any] | None = None
    """Accepted and ignored: places in the text that a search found."""

    def turn(self, param: str) -> Turn:
        """The turn that it becomes; ``param`` is its place, for errors."""
        thoughts, text = thinking.split(text_of(self.content) or self.refusal or "")
        calls: list[Mapping[str, Any]] = [
            each.function.call(f"{param}.tool_calls.{index}.function.arguments") | {"id": each.id}
            for index, each in enumerate(self.tool_calls or [])
        ]
        if self.function_call is not None:
            calls.append(self.function_call.call(f"{param}.function_call.arguments"))
        thoughts = self.reasoning_content or self.reasoning or thoughts
        return Turn("assistant", text, reasoning=thoughts, tool_calls=tuple(calls))


class ToolMessage(Strict):
    role: Literal["tool"]
    content: str | Parts
    tool_call_id: str
    name: str | None = None

    def turn(self, param: str) -> Turn:
        """The turn that it becomes; ``param`` is its place, for errors."""
        return Turn("tool", text_of(self.content), tool_call_id=self.tool_call_id, name=self.name or "")


class FunctionMessage(Strict):
    role: Literal["function"]
    content: str | None = None
    name: str

    def turn(self, param: str) -> Turn:
        """The turn that it becomes; ``param`` is its place, for errors."""
        return Turn("tool", self.content or "", name=self.name)


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage, Field(discriminator="role")
]


class Function(Strict):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    """Accepted; the arguments that the model writes are not constrained by the schema."""


class Tool(Strict):
    type: Literal["function"]
    function: Function

    def rendered(self) -> dict[str, Any]:
        """The tool as a chat template takes it."""
        given = self.function.model_dump(include={"name", "description"}, exclude_none=True)
        parameters = self.function.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": {**given, "parameters": parameters}}


def turns_of(messages: list[Message]) -> list[Turn]:
    """The turns of a request. The result of a call has the name of its tool, which some templates render.

    Raises:
        PydanticCustomError: arguments of a call are no JSON object, or a result has no call.
    """
    turns: list[Turn] = []
    names: dict[str, str] = {}
    for index, message in enumerate(messages):
        turn = message.turn(f"messages.{index}")
        names |= {str(call["id"]): str(call["name"]) for call in turn.tool_calls if "id" in call}
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in names:
                raise invalid(f"messages.{index}.tool_call_id", "no call before this message has this id")
            turn = Turn("tool", turn.content, tool_call_id=turn.tool_call_id, name=names[message.tool_call_id])
        turns.append(turn)
    return turns
