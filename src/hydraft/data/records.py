"""A record as a training objective reads it: a conversation of turns or plain text, a pair of answers, or a judged answer. No torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from hydraft.config.choices import Format


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    """``system``, ``user``, ``assistant`` or ``tool`` (a tool's result)."""
    content: str
    input: str = ""
    """The ``input`` of an alpaca record. A plain template may place it separately from ``content``."""
    reasoning: str = ""
    """The thoughts before an answer, without the marks around them."""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """The calls of an answer, each ``{"name": …, "arguments": {…}}``, with its ``id`` if it has one."""
    tool_call_id: str = ""
    """For the role ``tool``: the call that this is the result of; empty if the record does not say."""
    name: str = ""
    """For the role ``tool``: the name of the tool; empty if the record does not say."""
    trained: bool = True
    """For an answer: false if the record excludes it from training (``weight: 0``); it is then part of the prompt of later answers."""

    @property
    def text(self) -> str:
        """``content`` and ``input``, joined by a line break."""
        return "\n".join(part for part in (self.content, self.input) if part)


@dataclass(frozen=True)
class Conversation:
    """One record: turns that end with an answer of the assistant, or plain text."""

    turns: tuple[Turn, ...] = ()
    plain: str | None = None
    """Text that is trained as it is; ``turns`` is empty then."""
    task: str | None = None
    number: int = field(default=0, compare=False)
    """The number of the record in its source, from 1."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """The tools that the assistant may call: OpenAI's objects ``{"type": "function", "function": {…}}``."""
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the chat template (``chat_template_kwargs`` of a record or a request)."""

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """All turns before the last answer."""
        return self.turns[:-1]

    @property
    def reference(self) -> str:
        """The last answer."""
        return self.turns[-1].content

    @property
    def conversations(self) -> tuple["Conversation", ...]:
        """This conversation: a record of supervised fine-tuning has one."""
        return (self,)


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, of which one is preferred. Only the last answer of each conversation is trained."""

    chosen: Conversation
    """With the preferred answer."""
    rejected: Conversation
    """The same prompt turns, tools and template variables, with the other answer."""

    @property
    def conversations(self) -> tuple[Conversation, ...]:
        """``chosen`` and ``rejected``."""
        return (self.chosen, self.rejected)

    @property
    def task(self) -> str | None:
        """Groups the scores."""
        return self.chosen.task

    @property
    def number(self) -> int:
        """The number of the record in its source, from 1."""
        return self.chosen.number


@dataclass(frozen=True)
class Judged:
    """An answer that was judged good or bad. Only the last answer is trained."""

    conversation: Conversation
    desirable: bool
    """Whether the answer is good."""

    @property
    def conversations(self) -> tuple[Conversation, ...]:
        """The conversation."""
        return (self.conversation,)

    @property
    def task(self) -> str | None:
        """Groups the scores."""
        return self.conversation.task

    @property
    def number(self) -> int:
        """The number of the record in its source, from 1."""
        return self.conversation.number


class Record(Protocol):
    """What a training objective reads from one record of a source; ``Conversation``, ``Pair`` and ``Judged`` are such records."""

    @property
    def conversations(self) -> tuple[Conversation, ...]:
        """One for each sequence that is trained; an answer to the first one is generated and scored."""

    @property
    def task(self) -> str | None:
        """Groups the scores."""

    @property
    def number(self) -> int:
        """The number of the record in its source, from 1."""


Read = Callable[[dict[str, Any], Format, str, int], Record]
"""Makes a record from the object in the file, under the names of its format; its format, its place (for messages) and its number.
``conversation_of`` is one."""


def ask(question: str, system: str | None = None) -> Conversation:
    """A conversation with one question and an empty answer."""
    turns = (Turn("system", system),) if system else ()
    return Conversation((*turns, Turn("user", question), Turn("assistant", "")))
