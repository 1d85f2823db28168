"""Reads data sources into conversations; an invalid record is reported with its file and number. No torch at module level.

Three published formats and plain text are read. A format is recognised by the keys of a record:

* alpaca: ``{instruction, input?, output, system?, history?: [[question, answer], …]}``
* messages (OpenAI): ``{messages: [{role, content}, …]}``
* ShareGPT: ``{conversations: [{from, value}, …], system?}``
* text: ``{text}``; every token is trained

``task`` groups the scores. ``id`` is optional and must be unique.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hydraft.config.choices import Format
from hydraft.errors import ConfigError

KEYS = {
    Format.alpaca: ("instruction", "output"),
    Format.messages: ("messages",),
    Format.sharegpt: ("conversations",),
    Format.text: ("text",),
}
"""The keys that a record of each format must have."""

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""The role that each name in a record stands for."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    """``system``, ``user`` or ``assistant``."""
    content: str
    input: str = ""
    """The ``input`` of an alpaca record. A plain template may place it separately from ``content``."""

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


class Record(Protocol):
    """What a training objective reads from one record of a source; a ``Conversation`` is one."""

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
"""Makes a record from the object in the file, its format, its place (for messages) and its number; ``conversation_of`` is one."""


def ask(question: str, system: str | None = None) -> Conversation:
    """A conversation with one question and an empty answer."""
    turns = (Turn("system", system),) if system else ()
    return Conversation((*turns, Turn("user", question), Turn("assistant", "")))


def is_file(source: str) -> bool:
    """Whether ``source`` is a file, not a data set on the hub."""
    path = Path(source).expanduser()
    return path.exists() or path.suffix in (".json", ".jsonl", ".parquet") or source.startswith((".", "/", "~"))


def load(source: str, setting: str, form: Format = Format.auto, read: Read | None = None) -> list[Record]:
    """Read the records of a ``.json`` list, a ``.jsonl`` or ``.parquet`` file, or a data set on the hub.

    Args:
        source: path, or hub name (``owner/name``, or ``owner/name:split``; the default split is ``train``).
        setting: the setting that holds ``source``, for messages (``data.train``).
        form: the format of the records; ``auto`` recognises it by their keys.
        read: makes a record from an object in the file; by default ``conversation_of``.

    Raises:
        ConfigError: the source is missing, unreadable or empty; its records have no known format or different formats; or a
            record has no answer, an unknown role or the id of another record.
    """
    name = f"{setting}={source}"
    found = read_objects(source, name)
    if not found:
        raise ConfigError(f"{name}: no records in it")
    forms: dict[Format, int] = {}
    seen: dict[Any, int] = {}
    records = []
    for number, record in enumerate(found, 1):
        place = f"{name}, record {number}"
        if not isinstance(record, dict):
            raise ConfigError(f"{place}: must be an object, and is a {type(record).__name__}")
        known = form_of(record, place) if form is Format.auto else form
        forms.setdefault(known, number)
        if len(forms) > 1:
            different = " and ".join(f"record {at} is {other.value}" for other, at in forms.items())
            raise ConfigError(f"{name}: {different}; a file must have one format")
        identity = record.get("id")
        if identity is not None and seen.setdefault(str(identity), number) != number:
            raise ConfigError(f"{place}: has the id of record {seen[str(identity)]} ({identity})")
        records.append((read or conversation_of)(record, known, place, number))
    return records


def read_objects(source: str, name: str) -> list[Any]:
    """The objects in a file or in a data set on the hub, unchecked; ``name`` is used in messages."""
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
    return _without_nulls(rows)


def _without_nulls(rows: Iterable[dict[str, Any]]) -> list[Any]:
    """Rows of a table as records; columns that are null in a row are left out."""
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def _from_hub(source: str, name: str) -> list[Any]:
    import datasets

    owner, _, split = source.partition(":")
    try:
        return _without_nulls(datasets.load_dataset(owner, split=split or "train"))
    except Exception as error:  # the hub's client raises many types
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{name}: no such file, and not available on the hub ({reason})") from error


def form_of(record: dict[str, Any], place: str) -> Format:
    """The format whose keys the record has."""
    found = [form for form, keys in KEYS.items() if keys[0] in record]
    if len(found) == 1:
        return found[0]
    if found:
        both = " and ".join(form.value for form in found)
        raise ConfigError(f"{place}: has the keys of {both}; choose one with data.format={found[0].value}")
    keys = ", ".join(map(str, record)) or "none"
    known = "; ".join(f"{form.value}: {', '.join(needed)}" for form, needed in KEYS.items())
    raise ConfigError(f"{place}: unknown format (its keys: {keys}; known formats: {known})")


def conversation_of(record: dict[str, Any], form: Format, place: str, number: int = 0) -> Conversation:
    """A record of supervised fine-tuning.

    Raises:
        ConfigError: a key is missing or has an invalid value.
    """
    for key in KEYS[form]:
        if key not in record:
            keys = ", ".join(map(str, record)) or "none"
            raise ConfigError(f"{place}: has no {key!r} (its keys: {keys})")
    task = record.get("task")
    if form is Format.text:
        return Conversation(plain=_text(record, "text", place, required=True), task=task, number=number)
    turns = tuple(_alpaca(record, place) if form is Format.alpaca else _chat(record, form, place))
    _check_turns(turns, place)
    return Conversation(turns, task=task, number=number)


def _alpaca(record: dict[str, Any], place: str) -> Iterable[Turn]:
    if record.get("system"):
        yield Turn("system", _text(record, "system", place))
    for pair in record.get("history") or []:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise ConfigError(f"{place}: 'history' must be a list of [question, answer] pairs of text")
        yield Turn("user", pair[0])
        yield Turn("assistant", pair[1])
    yield Turn("user", _text(record, "instruction", place), _text(record, "input", place))
    yield Turn("assistant", _text(record, "output", place, required=True))


def _chat(record: dict[str, Any], form: Format, place: str) -> Iterable[Turn]:
    role_key, text_key = ("role", "content") if form is Format.messages else ("from", "value")
    listed = record[KEYS[form][0]]
    if not isinstance(listed, list):
        raise ConfigError(f"{place}: {KEYS[form][0]!r} must be a list of turns")
    if form is Format.sharegpt and record.get("system"):
        yield Turn("system", _text(record, "system", place))
    for index, turn in enumerate(listed, 1):
        if not isinstance(turn, dict) or role_key not in turn or text_key not in turn:
            raise ConfigError(f"{place}, turn {index}: must be an object with {role_key!r} and {text_key!r}")
        role = ROLES.get(str(turn[role_key]))
        if role is None:
            raise ConfigError(
                f"{place}, turn {index}: unknown {role_key} {turn[role_key]!r} (known: {', '.join(ROLES)})"
            )
        yield Turn(role, _text(turn, text_key, f"{place}, turn {index}", required=role == "assistant"))


def _check_turns(turns: tuple[Turn, ...], place: str) -> None:
    dialogue = turns[1:] if turns and turns[0].role == "system" else turns
    expected = [("user", "assistant")[index % 2] for index in range(len(dialogue))]
    for index, (turn, role) in enumerate(zip(dialogue, expected, strict=True), 1):
        if turn.role != role:
            raise ConfigError(f"{place}: turn {index} has the role {turn.role}, expected {role}")
    if not dialogue or dialogue[-1].role != "assistant":
        raise ConfigError(f"{place}: does not end with an answer of the assistant")


def _text(holder: dict[str, Any], key: str, place: str, required: bool = False) -> str:
    value = holder.get(key, "")
    if value is None:
        value = ""
    if not isinstance(value, str):
        raise ConfigError(f"{place}: {key!r} must be text, and is a {type(value).__name__}")
    if required and not value.strip():
        raise ConfigError(f"{place}: {key!r} is empty")
    return value
