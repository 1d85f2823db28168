"""Searches a record for two answers of which one is preferred and for their prompt, or for the judgement of an answer. No torch."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hydraft.config.choices import Format
from hydraft.data import format_choice
from hydraft.data.dialogues import is_whole, question_of
from hydraft.data.key_search import Search
from hydraft.data.keys import is_preference, present
from hydraft.data.label_names import judgement
from hydraft.data.named import Named, RecordSettings

SIDES = ("chosen", "rejected")
"""The names of the two answers."""

WORSE = ("rejected", "non_preferred", "dispreferred")
"""Words in the key of the answer that is not preferred."""


def sides(search: Search) -> dict[str, str]:
    """The keys of the two answers; none if the record has no pair.

    The preferred answer may be the record's own: ``{messages, rejected_response}`` (ms-swift). If ``data.columns`` gives a key of
    one of the two another name, such as ``output``, the record is one of supervised fine-tuning.
    """
    given, record = search.given, search.record
    if any(is_preference(key) for name, key in given.items() if name not in SIDES):
        return {}
    found = {name: key for name, key in given.items() if name in SIDES}
    known = [key for key in dict.fromkeys(search.left.values()) if is_preference(key) and present(record[key])]
    for key in sorted(known, key=lambda key: key.casefold() not in SIDES):
        found.setdefault("rejected" if any(word in key.casefold() for word in WORSE) else "chosen", key)
    return found if "rejected" in found else {}


def pair(search: Search, form: Format, found: dict[str, str]) -> tuple[Format, Named]:
    """The format of the prompt of a pair, and the record under the names of this format, ``chosen`` and ``rejected``.

    Without a prompt, none of the names of a format is there.

    Args:
        found: the keys of the two answers.

    Raises:
        ConfigError: the prompt may be one of several.
    """
    record = search.record
    rest = {key: value for key, value in record.items() if key not in found.values()}
    given = {name: key for name, key in search.given.items() if name not in SIDES}
    left = replace(search, record=rest, given=given, answered="chosen" not in found)
    if all(is_whole(record[key]) for key in found.values()) and "chosen" in found:
        names = {name: key for name, key in given.items() if name in ("system", "tools", "task")}
        names |= dict(format_choice.optional(left, Format.messages, set(names.values())))
        return Format.messages if form is Format.auto else form, Named(record, {**names, **found})
    asked = record.get("input")
    if isinstance(asked, dict) and "messages" in asked:  # OpenAI's preference fine-tuning
        values = Named(record, {**given, "messages": "input", "tools": "input", **found})
        values["messages"], values["tools"] = asked["messages"], asked.get("tools")
        return Format.messages, values
    candidates = format_choice.found(left, form)
    if form is Format.auto and not candidates:
        return Format.alpaca, Named(record, {**given, **found})
    chosen, names = format_choice.chosen(left, form, candidates)
    if "chosen" in found:
        names = {name: key for name, key in names.items() if name not in ("output", "label", "reasoning")}
    values = Named(record, {**names, **found})
    asked = question_of(values.get("instruction"))
    if asked is not None:
        values["instruction"] = asked
    return chosen, values


def judges(record: Mapping[str, Any], given: Mapping[str, str], settings: RecordSettings, place: str) -> bool:
    """Whether the key that ``data.columns`` calls ``label`` says that an answer is good or bad, and is not the answer itself."""
    if "label" not in given or settings.labels or judgement(record[given["label"]]) is None:
        return False
    rest = {key: value for key, value in record.items() if key != given["label"]}
    others = {name: key for name, key in given.items() if name != "label"}
    found = format_choice.found(Search(rest, others, settings, True, place), Format.auto)
    return any(
        "output" in names or "output" in others for form, names in found.items() if form is Format.alpaca
    ) or any(form in found for form in (Format.messages, Format.sharegpt))
