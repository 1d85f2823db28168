"""A chat template as a template of Ollama (Go's text/template), derived from what the Jinja template renders. No torch.

Jinja is not translated: conversations with marked contents are rendered, and the text around the marks is taken for that of the turns.
A template of which this text is not the same in every conversation is refused.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Message = dict[str, str]
Render = Callable[[list[Message]], str]
"""Renders messages, with the beginning of an answer after them."""

TURNS = 4
"""The most questions in the conversations that are compared."""
CONTENTS = ("你好，世界。", 'a\n\n{{ .b }} "c" <d> \\n', "一")
"""Contents of the turns in the conversations that are compared."""


@dataclass(frozen=True)
class Turns:
    """The text around the contents of a conversation."""

    begin: str
    """Before the first question, without a system message."""
    system: tuple[str, str] | None
    """Before the system message, and between it and the first question; None for a template that has no place for one."""
    answer: str
    """Between a question and its answer."""
    question: str
    """Between an answer and the next question."""
    end: str
    """After the last question."""

    def render(self, messages: Sequence[Message]) -> str:
        """What the template of Ollama renders for a conversation that ends with a question."""
        contents = [message["content"] for message in messages]
        text = self.begin
        if messages[0]["role"] == "system" and self.system is not None:
            text = self.system[0] + contents.pop(0) + self.system[1]
        for index, content in enumerate(contents):
            text += (self.answer if index % 2 else self.question if index else "") + content
        return text + self.end


class Unlike(ValueError):
    """A chat template that cannot be written as one of Ollama; the message says why."""


def derive(render: Render) -> Turns:
    """The text around the turns of a chat template.

    Raises:
        Unlike: it depends on more than the roles.
    """
    marks = [f"Qturn{number}x" for number in range(2 * TURNS - 1)]
    begin, *between, end = _apart(_rendered(render, _conversation(marks)), marks)
    if len({*between[0::2]}) > 1 or len({*between[1::2]}) > 1:
        raise Unlike("the text between its turns depends on their number")
    turns = Turns(begin, _system(render), between[0], between[1], end)
    for count in range(1, TURNS + 1):
        for system in ([], ["你是一位导游。"])[: 1 if turns.system is None else 2]:
            contents = [CONTENTS[number % len(CONTENTS)] for number in range(2 * count - 1)]
            messages = _conversation(contents, *system)
            if _rendered(render, messages) != turns.render(messages):
                what = f"{count} questions" + (" and a system message" if system else "")
                raise Unlike(f"it renders a conversation of {what} in another way")
    return turns


def trims(render: Render, turns: Turns) -> bool:
    """Whether the chat template removes white space around contents, which Ollama's templates cannot."""
    messages = _conversation([" 一 "])
    return _rendered(render, messages) != turns.render(messages)


def text(turns: Turns) -> str:
    """The template of Ollama: each literal is in quotes, so that no white space is added or lost."""
    begin = _literal(turns.begin)
    if turns.system is not None:
        before, after = turns.system
        begin = f"{{{{- if .System }}}}{_literal(before)}{{{{ .System }}}}{_literal(after)}\n{{{{- else }}}}{begin}{{{{ end }}}}"
    return "\n".join(
        (
            begin,
            "{{- $first := true }}",
            "{{- range $i, $_ := .Messages }}",
            '{{- if eq .Role "user" }}',
            f"{{{{- if $first }}}}{{{{ $first = false }}}}{{{{ else }}}}{_literal(turns.question)}{{{{ end }}}}{{{{ .Content }}}}",
            f"{{{{- if eq (len (slice $.Messages $i)) 1 }}}}{_literal(turns.end)}{{{{ end }}}}",
            f'{{{{- else if eq .Role "assistant" }}}}{_literal(turns.answer)}{{{{ .Content }}}}',
            "{{- end }}",
            "{{- end }}",
        )
    ).removeprefix("\n")


def _system(render: Render) -> tuple[str, str] | None:
    """The text around a system message; None if the template refuses it, or leaves it out."""
    marks = ["Qsystemx", "Qturn0x"]
    try:
        rendered = render(_conversation(marks[1:], marks[0]))
    except Exception:  # a template raises what it likes, and Jinja many types
        return None
    if marks[0] not in rendered:
        return None
    before, after, _ = _apart(rendered, marks)
    return before, after


def _conversation(contents: Sequence[str], system: str | None = None) -> list[Message]:
    turns = [{"role": "assistant" if n % 2 else "user", "content": content} for n, content in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def _rendered(render: Render, messages: list[Message]) -> str:
    try:
        return render(messages)
    except Exception as error:
        raise Unlike(f"it refuses a conversation of several turns ({str(error).splitlines()[0]})") from error


def _apart(rendered: str, marks: Sequence[str]) -> list[str]:
    """The text before, between and after the marks.

    Raises:
        Unlike: not each of them is there once, in their order.
    """
    parts = re.split("|".join(map(re.escape, marks)), rendered)
    if re.findall("|".join(map(re.escape, marks)), rendered) != list(marks):
        raise Unlike("it repeats, leaves out or reorders turns")
    return parts


def _literal(given: str) -> str:
    """An action that writes a text; empty for no text. Characters that a Modelfile drops are escaped."""
    if not given:
        return ""
    quoted = "".join(
        one if one.isprintable() else f"\\u{ord(one):04x}" if ord(one) < 0x10000 else f"\\U{ord(one):08x}"
        for one in json.dumps(given, ensure_ascii=False)
    )
    return f"{{{{ {quoted} }}}}"
