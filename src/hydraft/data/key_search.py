"""Searches a record for the keys of a question and its answer, of a chat or of a text. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hydraft.config.choices import Format
from hydraft.data.chat_turns import looks_like_turns
from hydraft.data.column_names import ANSWERS, CLASSIFIED, OPTIONAL, OTHER_CHATS, WEAK_ANSWERS
from hydraft.data.keys import is_preference, present
from hydraft.data.named import RecordSettings
from hydraft.errors import ConfigError

_PAIRED = {"instruction", "output", "label"}

KEYS_NEEDED = frozenset(("instruction", "output", "messages", "conversations", "chosen", "rejected", "text", "label"))
"""RecordSettings that every record must have; another one may be absent from some."""


@dataclass(frozen=True)
class Search:
    record: Mapping[str, Any]
    given: Mapping[str, str]
    settings: RecordSettings
    answered: bool
    place: str

    @cached_property
    def left(self) -> dict[str, str]:
        """The keys that data.columns does not name, by themselves in lower case."""
        taken = set(self.given.values())
        keys = [key for key in self.record if isinstance(key, str) and key not in taken]
        return {key.strip().casefold(): key for key in keys} | {key: key for key in keys}


def messages(search: Search) -> dict[str, str] | None:
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


def sharegpt(search: Search) -> dict[str, str] | None:
    if "conversations" in search.given:
        return {}
    known = "conversations" in search.left and not _PAIRED & set(search.given)
    return {"conversations": search.left["conversations"]} if known else None


def text(search: Search) -> dict[str, str] | None:
    if "text" in search.given:
        return {}
    known = "text" in search.left and not (_PAIRED | {"messages", "conversations"}) & set(search.given)
    return {"text": search.left["text"]} if known else None


def pair(search: Search) -> dict[str, str] | None:
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
        raise ConfigError(
            f"{search.place}: {keys} may each be the question; choose with data.columns={{instruction: …}}"
        )
    if strong:
        answer = {} if {"output", "label"} & set(given) else _answer(search, strong[0])
        return {"instruction": left[strong[0]]} | answer
    return _weak_pair(search)


def _weak_pair(search: Search) -> dict[str, str] | None:
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
    if any(map(is_preference, left)):
        return {}
    return None


def _answer(search: Search, question: str | None) -> dict[str, str]:
    left = search.left
    known = (
        ANSWERS[question] if question else tuple(dict.fromkeys(name for names in ANSWERS.values() for name in names))
    )
    there = [name for name in known if name in left]
    filled = [name for name in there if present(search.record[left[name]])]
    if there:
        return {"output": left[(filled or there)[0]]}
    if search.settings.labels and "label" in left:
        return {"label": left["label"]}
    return {}


SEARCHES = {Format.alpaca: pair, Format.messages: messages, Format.sharegpt: sharegpt, Format.text: text}
"""What finds the keys of each format: the key of each part, or None if the record has none."""
