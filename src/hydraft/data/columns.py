"""Finds the parts of a record by the names of its keys: those of a format, common other names, or ``data.columns``. No torch."""

from collections.abc import Mapping
from typing import Any

from hydraft.config.choices import Format
from hydraft.data import format_choice, preference_search
from hydraft.data.chat_turns import listed, looks_like_turns
from hydraft.data.key_search import KEYS_NEEDED, Search
from hydraft.data.label_names import answer_of, number_of
from hydraft.data.named import DEFAULTS, Named, RecordSettings
from hydraft.errors import ConfigError


def recognise(
    record: Mapping[str, Any],
    place: str,
    form: Format = Format.auto,
    settings: RecordSettings = DEFAULTS,
    answered: bool = True,
) -> tuple[Format, Named]:
    """The format of a record, and its values under the names of that format.

    Args:
        form: ``auto``, or the only format whose keys are looked for.
        answered: whether a record must have an answer; otherwise a question is enough.

    Raises:
        ConfigError: no format fits, or more than one.
    """
    given = settings.of_record(record)
    for name, key in settings.columns.items():
        if name in KEYS_NEEDED and name not in given:
            raise ConfigError(f"{place}: has no {key!r} (data.columns; its keys: {format_choice.keys_of(record)})")
    if preference_search.judges(record, given, settings, place):
        given["desirable"] = given.pop("label")
    search = Search(record, given, settings, answered, place)
    if sides := preference_search.sides(search):
        return _built(*preference_search.pair(search, form, sides), settings, place)
    chosen, names = format_choice.chosen(search, form, format_choice.found(search, form))
    if "label" in names and not answered and not settings.labels and number_of(record[names["label"]]) is not None:
        del names["label"]  # a number is no reference
    return _built(chosen, Named(record, names), settings, place)


def _built(form: Format, values: Named, settings: RecordSettings, place: str) -> tuple[Format, Named]:
    """The record under the names of ``form``; a question or an answer that is a list of turns makes it a chat."""
    names = values.names
    if "label" in names and "output" not in names:
        values["output"] = answer_of(values.pop("label"), settings.labels, f"{place}: {names['label']!r}")
        values.names["output"] = names["label"]
    role, content = settings.columns.get("role"), settings.columns.get("content")
    if form is Format.alpaca and any(isinstance(values.get(part), (list, dict)) for part in ("instruction", "output")):
        turns = _joined(values, place)
        if turns is not None:
            form, values["messages"] = Format.messages, turns
    for part in ("messages", "conversations", "history", "chosen", "rejected"):
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
