"""Data sources to conversations, with each fault named by file and place. No torch at module level.

Three published forms and plain text are read, each recognised by its keys, never by guessing:

* alpaca: ``{instruction, input?, output, system?, history?: [[question, answer], …]}``
* messages (OpenAI): ``{messages: [{role, content}, …]}``
* ShareGPT: ``{conversations: [{from, value}, …], system?}``
* text: ``{text}``, every token of which is trained

``task`` groups the scores; ``id``, where there is one, must be unique.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydraft.config.choices import Format
from hydraft.errors import ConfigError

KEYS = {
    Format.alpaca: ("instruction", "output"),
    Format.messages: ("messages",),
    Format.sharegpt: ("conversations",),
    Format.text: ("text",),
}
"""What a record of each form must have."""

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""What each form calls its speakers."""


@dataclass(frozen=True)
class Turn:
    """What one speaker said."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str
    input: str = ""
    """The alpaca form's second part of a question, which a plain template may place by itself."""

    @property
    def text(self) -> str:
        """Question and input as one turn, a line each."""
        return "\n".join(part for part in (self.content, self.input) if part)


@dataclass(frozen=True)
class Conversation:
    """One record: turns that end with the assistant's, or plain text."""

    turns: tuple[Turn, ...] = ()
    plain: str | None = None
    """Text to train on as it is; there are no turns then."""
    task: str | None = None
    number: int = field(default=0, compare=False)
    """Which record of its source it is, from 1."""

    @property
    def asked(self) -> tuple[Turn, ...]:
        """All turns but the last answer."""
        return self.turns[:-1]

    @property
    def reference(self) -> str:
        """The last answer."""
        return self.turns[-1].content


def ask(question: str, system: str | None = None) -> Conversation:
    """A conversation of one question that has no answer yet."""
    turns = (Turn("system", system),) if system else ()
    return Conversation((*turns, Turn("user", question), Turn("assistant", "")))


def is_file(source: str) -> bool:
    """Whether ``source`` means a file, and not a name on the hub."""
    path = Path(source).expanduser()
    return path.exists() or path.suffix in (".json", ".jsonl", ".parquet") or source.startswith((".", "/", "~"))


def load(source: str, setting: str, form: Format = Format.auto) -> list[Conversation]:
    """Read the conversations of a ``.json`` list, ``.jsonl``, ``.parquet`` file or a data set on the hub.

    Args:
        source: path, or hub name (``owner/name``, or ``owner/name:split``; the split is ``train`` otherwise).
        setting: the override that names it, for messages (``data.train``).
        form: which form the records have; ``auto`` to see it from their keys.

    Raises:
        ConfigError: the source is missing, unreadable, empty, of no known or of mixed forms, has a record without an
            answer or with an unknown speaker, or an id twice.
    """
    name = f"{setting}={source}"
    records = read(source, name)
    if not records:
        raise ConfigError(f"{name}: no records in it")
    forms: dict[Format, int] = {}
    seen: dict[Any, int] = {}
    conversations = []
    for number, record in enumerate(records, 1):
        place = f"{name}, record {number}"
        if not isinstance(record, dict):
            raise ConfigError(f"{place}: must be an object, and is a {type(record).__name__}")
        known = form_of(record, place) if form is Format.auto else form
        forms.setdefault(known, number)
        if len(forms) > 1:
            (first, at), (second, then) = forms.items()
            raise ConfigError(
                f"{name}: record {at} is {first.value} and record {then} is {second.value}; one form a file"
            )
        identity = record.get("id")
        if identity is not None and seen.setdefault(str(identity), number) != number:
            raise ConfigError(f"{place}: has the id of record {seen[str(identity)]} ({identity})")
        conversations.append(conversation_of(record, known, place, number))
    return conversations


def read(source: str, name: str) -> list[Any]:
    """The records of a file or of the hub, as they are; ``name`` is for messages."""
    path = Path(source).expanduser()
    if not is_file(source):
        return _from_hub(source, name)
    if path.suffix == ".parquet":
        return _parquet(path, name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error.strerror})") from None
    return _parse_lines(text, name) if path.suffix == ".jsonl" else _parse_list(text, name)


def _parse_list(text: str, name: str) -> list[Any]:
    try:
        value = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}: not JSON (line {error.lineno}: {error.msg})") from None
    if not isinstance(value, list):
        raise ConfigError(f"{name}: must be a JSON list of records, and is a {type(value).__name__}")
    return value


def _parse_lines(text: str, name: str) -> list[Any]:
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{name}, line {number}: not JSON ({error.msg})") from None
    return records


def _parquet(path: Path, name: str) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{name}: not a Parquet file ({str(error).splitlines()[0]})") from None
    return _given(rows)


def _given(rows: Iterable[dict[str, Any]]) -> list[Any]:
    """Rows of a table as records: a column that is empty in a row is no key of it."""
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def _from_hub(source: str, name: str) -> list[Any]:
    import datasets

    owner, _, split = source.partition(":")
    try:
        return _given(datasets.load_dataset(owner, split=split or "train"))
    except Exception as error:  # the hub's client raises a dozen kinds, none of them ours to mend
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{name}: no such file, and not to be had from the hub ({reason})") from error


def form_of(record: dict[str, Any], place: str) -> Format:
    """The one form whose keys the record has."""
    found = [form for form, keys in KEYS.items() if keys[0] in record]
    if len(found) == 1:
        return found[0]
    if found:
        both = " and ".join(form.value for form in found)
        raise ConfigError(f"{place}: has the keys of {both}; say which with data.format={found[0].value}")
    keys = ", ".join(map(str, record)) or "none"
    known = "; ".join(f"{form.value}: {', '.join(needed)}" for form, needed in KEYS.items())
    raise ConfigError(f"{place}: no known form (its keys: {keys}; known: {known})")


def conversation_of(record: dict[str, Any], form: Format, place: str, number: int = 0) -> Conversation:
    """One record as a conversation.

    Raises:
        ConfigError: it is not whole.
    """
    for key in KEYS[form]:
        if key not in record:
            keys = ", ".join(map(str, record)) or "none"
            raise ConfigError(f"{place}: has no {key!r} (its keys: {keys})")
    task = record.get("task")
    if form is Format.text:
        return Conversation(plain=_text(record, "text", place, needed=True), task=task, number=number)
    turns = tuple(_alpaca(record, place) if form is Format.alpaca else _chat(record, form, place))
    _check_turns(turns, place)
    return Conversation(turns, task=task, number=number)


def _alpaca(record: dict[str, Any], place: str) -> Iterable[Turn]:
    if record.get("system"):
        yield Turn("system", _text(record, "system", place))
    for pair in record.get("history") or []:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise ConfigError(f"{place}: 'history' must be [question, answer] pairs of text")
        yield Turn("user", pair[0])
        yield Turn("assistant", pair[1])
    yield Turn("user", _text(record, "instruction", place), _text(record, "input", place))
    yield Turn("assistant", _text(record, "output", place, needed=True))


def _chat(record: dict[str, Any], form: Format, place: str) -> Iterable[Turn]:
    who, what = ("role", "content") if form is Format.messages else ("from", "value")
    listed = record[KEYS[form][0]]
    if not isinstance(listed, list):
        raise ConfigError(f"{place}: {KEYS[form][0]!r} must be a list of turns")
    if form is Format.sharegpt and record.get("system"):
        yield Turn("system", _text(record, "system", place))
    for index, turn in enumerate(listed, 1):
        if not isinstance(turn, dict) or who not in turn or what not in turn:
            raise ConfigError(f"{place}, turn {index}: must be an object with {who!r} and {what!r}")
        role = ROLES.get(str(turn[who]))
        if role is None:
            raise ConfigError(f"{place}, turn {index}: unknown {who} {turn[who]!r} (known: {', '.join(ROLES)})")
        yield Turn(role, _text(turn, what, f"{place}, turn {index}", needed=role == "assistant"))


def _check_turns(turns: tuple[Turn, ...], place: str) -> None:
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    expected = [("user", "assistant")[index % 2] for index in range(len(spoken))]
    for index, (turn, role) in enumerate(zip(spoken, expected, strict=True), 1):
        if turn.role != role:
            raise ConfigError(f"{place}: turn {index} is the {turn.role}'s, where the {role} should speak")
    if not spoken or spoken[-1].role != "assistant":
        raise ConfigError(f"{place}: does not end with an answer, so there is nothing to learn from it")


def _text(holder: dict[str, Any], key: str, place: str, needed: bool = False) -> str:
    value = holder.get(key, "")
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise ConfigError(f"{place}: {key!r} must be text, and is a {type(value).__name__}")
    if needed and not value.strip():
        raise ConfigError(f"{place}: {key!r} is empty, so there is nothing to learn from it")
    return value
