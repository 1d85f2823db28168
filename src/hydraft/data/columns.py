"""Finds the parts of a record by the names of its keys: those of a format, common other names, or ``data.columns``. No torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydraft.config.choices import Format
from hydraft.data.chat_turns import listed, looks_like_turns
from hydraft.data.keys import PREFERENCE, present
from hydraft.data.label_names import answer_of
from hydraft.errors import ConfigError

KEYS = {
    Format.alpaca: ("instruction", "output"),
    Format.messages: ("messages",),
    Format.sharegpt: ("conversations",),
    Format.text: ("text",),
}
"""The keys that a record of each format must have."""

OTHER_CHATS = ("conversation", "dialogue", "dialog", "chat", "items", "data")
"""Other names of ``messages``; only if the value is a list of turns."""

ANSWERS = {
    "instruction": ("output", "response", "answer", "completion", "target", "solution"),
    "prompt": ("completion", "response", "answer", "output", "target"),
    "question": ("answer", "response", "solution", "output", "completion", "answers"),
    "query": ("response", "answer", "output", "answers"),
    "problem": ("solution", "answer", "output", "response"),
    "user": ("assistant",),
    "human": ("assistant", "gpt", "bot"),
}
"""Names of a question, and of its answer in the order of preference."""

WEAK_ANSWERS = {
    "input": ("output", "target", "response", "answer", "completion"),
    "source": ("target",),
    "content": ("summary",),
    "article": ("highlights", "summary"),
    "document": ("summary",),
    "dialogue": ("summary",),
}
"""Names that are a question only beside such an answer, and if there is no other question."""

CLASSIFIED = ("text", "sentence", "review", "content", "comment")
"""Names of a text that has a ``label``."""

BESIDE_TEXT = ("summary", "target", "label", "answer", "response", "output", "completion")
"""Keys beside ``text`` that make it a question."""

OPTIONAL = {
    "input": ("input", "context"),
    "system": ("system", "system_prompt", "meta_instruction"),
    "history": ("history",),
    "reasoning": ("reasoning_content", "reasoning", "thinking"),
    "tools": ("tools", "functions"),
}
"""Further parts of a record, and the keys that they are found under."""

EXACT = {("reasoning", "reasoning_content"), ("tools", "functions")}
"""Names that need not be reported although they are not those of a format."""


class Named(dict[str, Any]):
    """A record under the names of its format, which remembers the keys that its values have in the file."""

    def __init__(self, values: Mapping[str, Any], names: Mapping[str, str], place: str = "") -> None:
        """``values`` is the record as it is in the file, ``names`` gives a key to each part that was found."""
        super().__init__({key: value for key, value in values.items() if key not in names})
        self.update({name: values[key] for name, key in names.items() if key in values})
        self.names = dict(names)
        self.raw = values

    def key(self, name: str) -> str:
        """The key in the file."""
        return self.names.get(name, name)

    @property
    def read(self) -> frozenset[str]:
        """The keys of the file that are read."""
        return frozenset(self.names.values())


@dataclass(frozen=True)
class Columns:
    """The settings ``data.columns`` and ``data.labels``."""

    names: Mapping[str, str] = field(default_factory=dict)
    labels: Sequence[str] = ()

    def of_record(self, record: Mapping[str, Any]) -> dict[str, str]:
        """The keys of this record that ``data.columns`` names; those of a turn are left out."""
        return {name: key for name, key in self.names.items() if key in record and name not in ("role", "content")}


NO_COLUMNS = Columns()


def recognise(
    record: Mapping[str, Any], place: str, form: Format = Format.auto, columns: Columns = NO_COLUMNS, answered: bool = True
) -> tuple[Format, Named]:
    """The format of a record, and its values under the names of that format.

    Args:
        form: ``auto``, or the only format whose keys are looked for.
        answered: whether a record must have an answer; otherwise a question is enough.

    Raises:
        ConfigError: no format fits, or more than one.
    """
    given = columns.of_record(record)
    for name in KEYS_NEEDED & set(columns.names) - set(given):
        raise ConfigError(f"{place}: has no {columns.names[name]!r} (data.columns; its keys: {_keys(record)})")
    found = {}
    for known, search in _SEARCHES.items():
        if form in (Format.auto, known) and (names := search(_Search(record, given, columns, answered, place))) is not None:
            found[known] = names
    chosen = form if form is not Format.auto else _only(record, found, given, place)
    names = found.get(chosen, {})
    if chosen is not Format.text:
        names |= {name: key for name, key in _optional(record, chosen, set(names.values())) if name not in names}
    names |= given
    if names.get("label") in record and not answered and not columns.labels:
        del names["label"]  # a number without names is no reference
    return _built(record, chosen, names, columns, place)


_PAIRED = {"instruction", "output", "label"}

KEYS_NEEDED = frozenset(("instruction", "output", "messages", "conversations", "text", "label"))
"""Columns that every record must have; another one may be absent from some."""


@dataclass(frozen=True)
class _Search:
    record: Mapping[str, Any]
    given: Mapping[str, str]
    columns: Columns
    answered: bool
    place: str

    @property
    def left(self) -> dict[str, str]:
        """The keys that data.columns does not name, by themselves in lower case."""
        taken = set(self.given.values())
        keys = [key for key in self.record if isinstance(key, str) and key not in taken]
        return {key.strip().casefold(): key for key in keys} | {key: key for key in keys}


def _messages(search: _Search) -> dict[str, str] | None:
    if "messages" in search.given:
        return {}
    left = search.left
    if _PAIRED & set(search.given):
        return None
    if "messages" in left:
        return {"messages": left["messages"]}
    if "conversations" in left or "conversations" in search.given:
        return None
    for name in OTHER_CHATS:
        if name in left and looks_like_turns(search.record[left[name]], texts=True):
            return {"messages": left[name]}
    return None


def _sharegpt(search: _Search) -> dict[str, str] | None:
    if "conversations" in search.given:
        return {}
    known = "conversations" in search.left and not _PAIRED & set(search.given)
    return {"conversations": search.left["conversations"]} if known else None


def _text(search: _Search) -> dict[str, str] | None:
    if "text" in search.given:
        return {}
    known = "text" in search.left and not (_PAIRED | {"messages", "conversations"}) & set(search.given)
    return {"text": search.left["text"]} if known else None


def _pair(search: _Search) -> dict[str, str] | None:
    """The keys of a question and of its answer."""
    given, left, record = search.given, search.left, search.record
    if not {"messages", "conversations", "text"}.isdisjoint(given):
        return None
    if "instruction" in given:
        return {} if {"output", "label"} & set(given) else _answer(search, None)
    if "instruction" in left and ("output" in left or "output" in given):
        return {"instruction": left["instruction"]} | ({} if "output" in given else {"output": left["output"]})
    strong = [name for name in ANSWERS if name in left and present(record[left[name]])] or [
        name for name in ANSWERS if name in left
    ][:1]
    if len(strong) > 1:
        keys = " and ".join(repr(left[name]) for name in strong)
        raise ConfigError(f"{search.place}: {keys} may each be the question; choose with data.columns={{instruction: …}}")
    if strong:
        answer = {} if {"output", "label"} & set(given) else _answer(search, strong[0])
        return {"instruction": left[strong[0]]} | answer
    return _weak_pair(search)


def _weak_pair(search: _Search) -> dict[str, str] | None:
    given, left = search.given, search.left
    for name, answers in WEAK_ANSWERS.items():
        if name not in left:
            continue
        if "output" in given and name == "input":
            return {"instruction": left[name]}
        if name == "input" and "content" in left and any(key in left for key in OPTIONAL["reasoning"]):
            return {"instruction": left[name], "output": left["content"]}
        for answer in answers:
            if answer in left:
                return {"instruction": left[name], "output": left[answer]}
    for name in CLASSIFIED:
        if name in left and ("label" in given or "label" in left):
            return {"instruction": left[name]} | ({} if "label" in given else {"label": left["label"]})
    for name in ("messages", "conversations", *OTHER_CHATS) if "output" in given else ():
        if name in left:
            return {"instruction": left[name]}
    if not search.answered and "input" in left:
        return {"instruction": left["input"]}
    if any(key in left for key in PREFERENCE):
        return {}
    return None


def _answer(search: _Search, question: str | None) -> dict[str, str]:
    left = search.left
    known = ANSWERS[question] if question else tuple(dict.fromkeys(name for names in ANSWERS.values() for name in names))
    there = [name for name in known if name in left]
    filled = [name for name in there if present(search.record[left[name]])]
    if there:
        return {"output": left[(filled or there)[0]]}
    if search.columns.labels and "label" in left:
        return {"label": left["label"]}
    return {}


_SEARCHES = {Format.alpaca: _pair, Format.messages: _messages, Format.sharegpt: _sharegpt, Format.text: _text}


def _only(record: Mapping[str, Any], found: dict[Format, dict[str, str]], given: Mapping[str, str], place: str) -> Format:
    """The one format that was found, or the one whose texts are all in another that is a copy of it."""
    if not found:
        known = "; ".join(f"{form.value}: {', '.join(needed)}" for form, needed in KEYS.items())
        raise ConfigError(f"{place}: unknown format (its keys: {_keys(record)}; known formats: {known}; others: data.columns)")
    pair, text = found.get(Format.alpaca), found.get(Format.text)
    chats = [form for form in found if form in (Format.messages, Format.sharegpt)]
    if chats and pair is not None and _same(record, pair, record[next(iter(found[chats[0]].values()), "messages")]):
        del found[Format.alpaca]
    if text is not None and pair is not None and set(pair) & {"output"} and not chats:
        if all(isinstance(record[key], str) and record[key] in str(record["text"]) for key in pair.values()):
            del found[Format.text]  # the text is made of the question and the answer, as in tatsu-lab/alpaca
    if list(found) == [Format.text] and not given:
        beside = [key for key in BESIDE_TEXT if present(record.get(key))]
        if beside:
            raise ConfigError(
                f"{place}: is 'text' trained as it is, or the question to {beside[0]!r}? choose data.format=text or "
                f"data.columns={{instruction: text, output: {beside[0]}}}"
            )
    if len(found) > 1:
        if text is not None and pair is not None and "label" in pair and len(found) == 2:
            return Format.alpaca
        both = " and ".join(form.value for form in found)
        raise ConfigError(
            f"{place}: has the keys of {both}; choose one with data.format={next(iter(found)).value}, or with data.columns"
        )
    return next(iter(found))


def _same(record: Mapping[str, Any], pair: Mapping[str, str], turns: Any) -> bool:
    """Whether a question and its answer, under names that are only guessed, are a copy of what the turns have."""
    if pair.get("instruction") == "instruction" and pair.get("output") == "output":
        return False
    texts = set(_texts(turns))
    return "output" not in pair or all(record[key] in texts for key in pair.values() if isinstance(record[key], str))


def _texts(turns: Any) -> Iterator[str]:
    for turn in turns if isinstance(turns, list) else ():
        yield from (text for text in (turn.values() if isinstance(turn, dict) else [turn]) if isinstance(text, str))


def _optional(record: Mapping[str, Any], form: Format, taken: set[str]) -> Iterator[tuple[str, str]]:
    for name, keys in OPTIONAL.items():
        if form is not Format.alpaca and name in ("input", "history", "reasoning"):
            continue
        there = [key for key in keys if key in record and key not in taken]
        filled = [key for key in there if present(record[key])]
        if there:
            yield name, (filled or there)[0]


def _built(
    record: Mapping[str, Any], form: Format, names: dict[str, str], columns: Columns, place: str
) -> tuple[Format, Named]:
    """The record under the names of ``form``; a question or an answer that is a list of turns makes it a chat."""
    values = Named(record, names)
    if "label" in names and "output" not in names:
        values["output"] = answer_of(values.pop("label"), columns.labels, f"{place}: {names['label']!r}")
    role, content = columns.names.get("role"), columns.names.get("content")
    if form is Format.alpaca and any(isinstance(values.get(part), (list, dict)) for part in ("instruction", "output")):
        turns = _joined(values, place)
        if turns is not None:
            form, values["messages"] = Format.messages, turns
    for part in ("messages", "conversations", "history"):
        if (role or content) and isinstance(values.get(part), list):
            values[part] = [_renamed(turn, role, content) for turn in values[part]]
    return form, values


def _joined(values: Named, place: str) -> list[Any] | None:
    """TRL's conversational form: the turns of the prompt, whose answers are not trained, and those of the completion."""
    question, answer = values.get("instruction"), values.get("output")
    if not (looks_like_turns(question) or looks_like_turns([answer] if isinstance(answer, dict) else answer)):
        return None
    asked = listed(question) if not isinstance(question, str) else [{"role": "user", "content": question}]
    given = [answer] if isinstance(answer, dict) else listed(answer)
    if given is None and isinstance(answer, str):
        given = [{"role": "assistant", "content": answer}]
    if asked is None:
        raise ConfigError(f"{place}: {values.key('instruction')!r} must be text or a list of turns")
    return [*map(_prompted, asked), *(given or [])]


def _prompted(turn: Any) -> Any:
    answers = isinstance(turn, dict) and str(turn.get("role", turn.get("from"))).casefold() not in ("user", "human")
    return {**turn, "train": False} if answers else turn


def _renamed(turn: Any, role: str | None, content: str | None) -> Any:
    if not isinstance(turn, dict):
        return turn
    return {{role: "role", content: "content"}.get(key, key): value for key, value in turn.items()}


def _keys(record: Iterable[Any]) -> str:
    return ", ".join(map(str, record)) or "none"
