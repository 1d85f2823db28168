"""The thoughts of an answer, apart from its text. No torch.

Models write their thoughts between two marks ahead of the answer. A record may have them in its text, as the model would write them, or
under a key of their own (``reasoning_content``).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from hydraft.config.choices import Thinking
from hydraft.config.data import DataConfig
from hydraft.data.records import Conversation, Record
from hydraft.errors import ConfigError

MARKS = (
    ("<think>", "</think>"),  # Qwen3, DeepSeek-R1, GLM-4.5, Granite 3.2, SmolLM3, Hunyuan, MiniCPM4
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("◁think▷", "◁/think▷"),  # Kimi
)
"""What opens and closes the thoughts, in the families that have any."""


class Answer(NamedTuple):
    """An answer, read from the text that a model wrote."""

    thoughts: str
    """Without the marks and the blank space around them."""
    text: str
    """The answer itself; empty if the thoughts do not end."""
    ended: bool = True
    """Whether the thoughts ended, or there are none."""


def split(text: str) -> tuple[str, str]:
    """The thoughts at the start of a record's answer and the rest of it. The opening mark may be missing, as DeepSeek-R1 writes them."""
    for opening, closing in MARKS:
        before, closed, rest = text.partition(closing)
        if closed and opening not in before.strip().removeprefix(opening):
            return before.strip().removeprefix(opening).strip(), rest.strip()
        if not closed and text.lstrip().startswith(opening):
            return text.strip().removeprefix(opening).strip(), ""
    return "", text


def read(text: str, opened: bool) -> Answer:
    """Split what a model wrote; ``opened``: the prompt ends with the opening mark. A mark further on in the text is text."""
    for opening, closing in MARKS:
        begins = text.lstrip().startswith(opening)
        if begins or (opened and closing in text):
            before, closed, rest = text.strip().removeprefix(opening).partition(closing)
            return Answer(before.strip(), rest.strip(), bool(closed))
    return Answer(text.strip(), "", False) if opened else Answer("", text)


def opens(prompt: str) -> bool:
    """Whether a prompt ends with an opening mark, so that the answer begins with thoughts."""
    return prompt.rstrip().endswith(tuple(opening for opening, _ in MARKS))


@dataclass(frozen=True)
class Block:
    """How a template writes thoughts."""

    opening: str = MARKS[0][0]
    closing: str = MARKS[0][1]
    inside: str = "\n"
    """The blank space between the thoughts and each of the marks."""
    after: str = "\n\n"
    """The blank space between the closing mark and the answer."""

    def tail(self, prompt: str) -> tuple[str, bool, bool]:
        """A prompt without the marks at its end, and whether it ends with the opening mark, and with the closing one."""
        head = prompt.rstrip()
        closed = head.endswith(self.closing)
        head = head.removesuffix(self.closing).rstrip() if closed else head
        begun = head.endswith(self.opening)
        head = head.removesuffix(self.opening) if begun else head
        return (head if begun else prompt[: len(head)] if closed else prompt), begun and not closed, closed

    def closed(self, prompt: str) -> str:
        """What ends the thoughts that a prompt has opened: thoughts that are empty."""
        return self.inside + self.closing + self.after if self.tail(prompt)[1] else ""

    def around(self, thoughts: str, opened: bool) -> str:
        """The text of thoughts up to the closing mark; ``opened``: the opening mark is in the prompt already."""
        begin = "" if opened else self.opening + self.inside
        return f"{begin}{thoughts}{self.inside}{self.closing}"


def block_of(source: str, renderings: Sequence[str]) -> Block:
    """How the template ``source`` writes thoughts, as its ``renderings``, which end where an answer begins, show."""
    opening, closing = next((pair for pair in MARKS if pair[1] in source), MARKS[0])
    for text in renderings:
        if found := re.search(re.escape(opening) + r"(\s*)" + re.escape(closing) + r"(\s*)$", text):
            return Block(opening, closing, found[1][: len(found[1]) // 2], found[2])
    for text in renderings:
        if found := re.search(re.escape(opening) + r"(\s*)$", text):
            return Block(opening, closing, found[1], "\n\n" if found[1] else "")
    return Block(opening, closing)


def has_thoughts(records: Iterable[Record]) -> bool:
    """Whether an answer in any of the records has thoughts."""
    return any(turn.reasoning for record in records for each in record.conversations for turn in each.turns)


def resolve(data: DataConfig, records: Iterable[Record]) -> DataConfig:
    """The section with ``thinking`` on or off: ``auto`` is on if a training record has thoughts.

    Raises:
        ConfigError: it is on, and no record has any.
    """
    if data.thinking is Thinking.off:
        return data
    found = has_thoughts(records)
    if data.thinking is Thinking.on and not found:
        raise ConfigError(
            "data.thinking=on: no training record has thoughts (reasoning_content, or <think> in an answer): use data.thinking=auto"
        )
    return replace(data, thinking=Thinking.on if found else Thinking.off)


def wanted(conversation: Conversation, data: DataConfig) -> Thinking:
    """Whether a conversation is rendered with thoughts: as its own template variables say, otherwise as the data section does."""
    for name in ("enable_thinking", "thinking"):
        if isinstance(own := conversation.template_variables.get(name), bool):
            return Thinking.on if own else Thinking.off
    return data.thinking
