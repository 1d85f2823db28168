"""Parses an answer, piece by piece, into thoughts, text and tool calls.

transformers' ``ResponseParser`` does it, by a description of how a model writes them. Some tokenizers bring one (``response_template``);
for the others it is found from how the chat template renders a call.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_parsing import ResponseParser

from hydraft.data import chat_template
from hydraft.data.chat_template import CALLED, OFFERED, QUESTION
from hydraft.data.records import Conversation
from hydraft.data.thinking import MARKS
from hydraft.errors import ConfigError
from hydraft.infer.serve.text import as_json

SHOWN = tuple(mark for pair in MARKS for mark in pair)
"""Tokens that an answer is parsed by, where the tokenizer has them as special ones."""
OPENING, CLOSING = "<tool_call>", "</tool_call>"
CALLS: dict[str, dict[str, Any]] = {
    # Hermes, Qwen2.5, Qwen3
    r'<tool_call>\s*{"name": "zqToolqz", "arguments":': {
        "open_pattern": r"\s*<tool_call>", "close": CLOSING,
        "content": "json", "content_args": {"allow_non_json": True}, "transform": {"function": "{content}"},
    },
    # Qwen3-Coder, Qwen3.5
    r"<tool_call>\s*<function=zqToolqz>": {
        "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>", "close": CLOSING,
        "content": "xml-inline",
        "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>"},
        "transform": {"function": {"name": "{name}", "arguments": "{content}"}},
    },
    # GLM-4.5
    r"<tool_call>zqToolqz\s*<arg_key>": {
        "open_pattern": r"\s*<tool_call>(?P<name>[^<\s]+)", "close": CLOSING,
        "content": "xml-inline",
        "content_args": {"tag_pattern": r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>"},
        "transform": {"function": {"name": "{name}", "arguments": "{content}"}},
    },
    # Llama 3.1: the whole answer is the call
    r'{"name": "zqToolqz", "parameters":': {
        "open_pattern": r'\A\s*(?={\s*"name"\s*:)',
        "content": "json", "content_args": {"allow_non_json": True}, "transform": {"function": "{content}"},
    },
}  # fmt: skip
"""What a call of ``chat_template.TOOL`` looks like, and the field of a response template that reads it."""


@dataclass(frozen=True)
class Call:
    """A call of a tool that the model has written."""

    name: str
    arguments: str
    """A JSON object."""


@dataclass
class Part:
    """What a piece of an answer adds to it."""

    text: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)

    def __add__(self, more: "Part") -> "Part":
        return Part(self.text + more.text, self.reasoning + more.reasoning, self.calls + more.calls)


def call_field(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any] | None:
    """How the model of ``tokenizer`` writes calls; None if its template has no place for them, or they have an unknown form."""
    own = (getattr(tokenizer, "response_template", None) or {}).get("fields", {}).get("tool_calls")
    try:
        template = chat_template.of(tokenizer, tools=True)
    except ConfigError:
        return None
    if not (template.takes_tools and template.call_style):
        return None
    answered = template.render(CALLED[:2], chat=Conversation(tools=OFFERED)).rpartition(QUESTION)[2]
    return own or next((form for pattern, form in CALLS.items() if re.search(pattern, answered)), None)


class AnswerParser:
    """Splits one answer into its parts."""

    def __init__(
        self,
        prompt: str,
        tools: Sequence[Mapping[str, Any]] = (),
        calls: dict[str, Any] | None = None,
        parallel: bool = True,
    ) -> None:
        """Start an answer.

        Args:
            prompt: the end of the rendered prompt, which may open the thoughts.
            tools: the tools of the request; their schemas give arguments their types.
            calls: how the model writes calls (``call_field``); None if it has no tools.
            parallel: whether calls after the first are returned.
        """
        fields: dict[str, Any] = {"content": {"content": "text"}}
        opened = next((opening for opening, _ in MARKS if prompt.rstrip().endswith(opening)), None)
        for opening, closing in MARKS:
            if opened in (None, opening):
                start = r"\A\s*" + re.escape(opening) + r"\s*"
                fields[f"thoughts {opening}"] = {"open_pattern": start, "close_pattern": r"\s*" + re.escape(closing)}
        if calls is not None:
            fields["calls"] = {**calls, "repeats": True}
        self._marked = calls is not None and calls.get("close") == CLOSING
        self._parser = ResponseParser(
            {"fields": fields, "start_anchor": "\0"}, prefix=opened or "", tools=[dict(tool) for tool in tools]
        )
        self._blank = bool(opened)
        """Whether blank space at the start of the text is left out: after thoughts or a call."""
        self._most = None if parallel else 1
        self.calls = 0
        """Calls so far."""
        self._all, self._inside = "", ""
        """The answer so far, and of that the inside of an open call."""

    def add(self, text: str) -> Part:
        """The parts that ``text`` completes."""
        self._all += text
        return self._part(self._parser.feed(text)) if text else Part()

    def end(self) -> Part:
        """The rest of the answer. A call that was cut off is text."""
        return self._part(self._parser.finalize()[1], ended=True)

    def _part(self, events: list[dict[str, Any]], ended: bool = False) -> Part:
        part = Part()
        for event in events:
            kind, name = event["type"], event["field"]
            if name == "content" and kind == "region_chunk":
                text = event["text"].lstrip() if self._blank else event["text"]
                self._blank = self._blank and not text
                part.text += text
            elif name.startswith("thoughts"):
                part.reasoning += event.get("text", "")
                self._blank = self._blank or kind == "region_close"
            elif name == "calls" and kind == "region_chunk":
                self._inside += event["text"]
            elif name == "calls" and kind == "region_close":
                cut = ended and self._marked and not self._all.rstrip().endswith(CLOSING)
                call = None if cut else _call(event["value"])
                if call is None:
                    part.text += self._as_text()
                else:
                    self.calls += 1
                    part.calls += [call] if self._most is None or self.calls <= self._most else []
                    self._blank = True
                self._inside = ""
        return part

    def _as_text(self) -> str:
        """The call that is open, as the model wrote it."""
        if not self._marked:
            return self._inside
        start = self._all.rfind(OPENING, 0, self._all.rfind(self._inside))
        end = self._all.find(CLOSING, start)
        return self._all[start:] if end < 0 else self._all[start : end + len(CLOSING)]


def _call(value: Any) -> Call | None:
    """A parsed call; None if it is not well formed."""
    value = value.get("function") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        return Call(value["name"], arguments)
    return Call(value["name"], as_json(arguments)) if isinstance(arguments, dict) else None
