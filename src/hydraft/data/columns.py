"""Finds the parts of a record by the names of its keys: those of a format, common other names, or ``data.columns``. No torch."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from hydraft.config.choices import Format
from hydraft.data.chat_turns import ROLES, listed, looks_like_turns
from hydraft.data.column_names import BESIDE_TEXT, KEYS, OPTIONAL
from hydraft.data.key_search import KEYS_NEEDED, SEARCHES, Search
from hydraft.data.keys import present
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
    for name in KEYS_NEEDED & set(settings.columns) - set(given):
        raise ConfigError(f"{place}: has no {settings.columns[name]!r} (data.columns; its keys: {_keys(record)})")
    found = {}
    for known, search in SEARCHES.items():
        if (
            form in (Format.auto, known)
            and (names := search(Search(record, given, settings, answered, place))) is not None
        ):
            found[known] = names
    chosen = form if form is not Format.auto else _only(record, found, given, place)
    names = found.get(chosen, {})
    if chosen is not Format.text:
        names |= {name: key for name, key in _optional(record, chosen, set(names.values())) if name not in names}
    names |= given
    if "label" in names and not answered and not settings.labels and number_of(record[names["label"]]) is not None:
        del names["label"]  # a number is no reference
    return _built(record, chosen, names, settings, place)


def _only(
    record: Mapping[str, Any], found: dict[Format, dict[str, str]], given: Mapping[str, str], place: str
) -> Format:
    """The one format that was found, or the one whose texts are all in another that is a copy of it."""
    if not found:
        known = "; ".join(f"{form.value}: {', '.join(needed)}" for form, needed in KEYS.items())
        raise ConfigError(
            f"{place}: unknown format (its keys: {_keys(record)}; known formats: {known}; others: data.columns)"
        )
    pair, text = found.get(Format.alpaca), found.get(Format.text)
    chats = [form for form in found if form in (Format.messages, Format.sharegpt)]
    if chats and pair is not None and _same(record, pair, record[next(iter(found[chats[0]].values()), "messages")]):
        del found[Format.alpaca]
    if text is not None and pair is not None and not chats and _made_of(record, pair):
        del found[Format.text]
    if list(found) == [Format.text] and not given:
        if str(record.get("role", record.get("from"))).casefold() in ROLES:
            raise ConfigError(
                f"{place}: is one turn of a chat; a record must be a whole conversation (or choose data.format=text)"
            )
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


def _made_of(record: Mapping[str, Any], pair: Mapping[str, str]) -> bool:
    """Whether ``text`` has the whole question and answer in it, as in tatsu-lab/alpaca."""
    texts = [record[key] for key in pair.values()]
    return "output" in pair and all(isinstance(text, str) and text in str(record["text"]) for text in texts)


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
    record: Mapping[str, Any], form: Format, names: dict[str, str], settings: RecordSettings, place: str
) -> tuple[Format, Named]:
    """The record under the names of ``form``; a question or an answer that is a list of turns makes it a chat."""
    values = Named(record, names)
    if "label" in names and "output" not in names:
        values["output"] = answer_of(values.pop("label"), settings.labels, f"{place}: {names['label']!r}")
    role, content = settings.columns.get("role"), settings.columns.get("content")
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
