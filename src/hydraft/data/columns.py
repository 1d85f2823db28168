"""Finds the parts of a record by the names of its keys: those of a format, common other names, or ``data.columns``. No torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydraft.config.choices import Format
from hydraft.data.chat_turns import listed, looks_like_turns, role_of
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
    for name, key in settings.columns.items():
        if name in KEYS_NEEDED and name not in given:
            raise ConfigError(f"{place}: has no {key!r} (data.columns; its keys: {_keys(record)})")
    searched = Search(record, given, settings, answered, place)
    found = {}
    for known, search in SEARCHES.items():
        if form in (Format.auto, known) and (names := search(searched)) is not None:
            found[known] = names
    chosen = form if form is not Format.auto else _only(searched, found)
    names = {**found.get(chosen, {}), **given}
    for name, key in _optional(searched, chosen, set(names.values())):
        if name not in settings.columns:
            names.setdefault(name, key)
    if "label" in names and not answered and not settings.labels and number_of(record[names["label"]]) is not None:
        del names["label"]  # a number is no reference
    return _built(record, chosen, names, settings, place)


def _only(search: Search, found: dict[Format, dict[str, str]]) -> Format:
    """The one format that was found; a part without a value, and a copy of another part, do not count."""
    record, place = search.record, search.place
    if "input_ids" in record:
        raise ConfigError(f"{place}: has token ids ('input_ids'); records are texts, which are tokenized here")
    if not found:
        known = "; ".join(f"{form.value}: {', '.join(needed)}" for form, needed in KEYS.items())
        raise ConfigError(
            f"{place}: unknown format (its keys: {_keys(record)}; known formats: {known}; others: data.columns)"
        )
    values = {form: [record[key] for key in names.values()] for form, names in found.items()}
    left = [form for form in found if not values[form] or any(map(present, values[form]))] or list(found)[:1]
    chats = [form for form in left if form in (Format.messages, Format.sharegpt)]
    if Format.alpaca in left and chats and _is_copy(found[Format.alpaca], record, values[chats[0]]):
        left.remove(Format.alpaca)
    if left == [Format.alpaca, Format.text] and _is_question(found[Format.alpaca], values):
        left.remove(Format.text)
    if left == [Format.text] and not search.given:
        _check_text(search, found[Format.text]["text"])
    if len(left) > 1:
        both = " and ".join(form.value for form in left)
        raise ConfigError(
            f"{place}: has the keys of {both}; choose one with data.format={left[0].value}, or with data.columns"
        )
    return left[0]


def _is_question(pair: Mapping[str, str], values: Mapping[Format, list[Any]]) -> bool:
    """Whether a text is no other form of a record than the pair beside it.

    It is the question to a label, or it is made of the question and the answer, as in tatsu-lab/alpaca; and a record of preference
    training is refused as that.
    """
    if "label" in pair or not pair:
        return True
    text = str(next(iter(values[Format.text]), ""))
    return "output" in pair and all(isinstance(part, str) and part in text for part in values[Format.alpaca])


def _check_text(search: Search, key: str) -> None:
    """Refuse a text that may be a question, or one turn of a chat."""
    record, place = search.record, search.place
    if role_of(record.get("role", record.get("from"))) is not None:
        raise ConfigError(
            f"{place}: is one turn of a chat; a record must be a whole conversation (or choose data.format=text)"
        )
    beside = [search.left[name] for name in BESIDE_TEXT if name in search.left and present(record[search.left[name]])]
    if beside:
        raise ConfigError(
            f"{place}: is {key!r} trained as it is, or the question to {beside[0]!r}? choose data.format=text or "
            f"data.columns={{instruction: {key}, output: {beside[0]}}}"
        )


def _is_copy(pair: Mapping[str, str], record: Mapping[str, Any], chats: Sequence[Any]) -> bool:
    """Whether a question and its answer, under names that are only guessed, are a copy of what the turns have."""
    if pair.get("instruction") == "instruction" and pair.get("output") == "output":
        return False
    texts = {text for turns in chats for text in _texts(turns)}
    return "output" not in pair or all(record[key] in texts for key in pair.values() if isinstance(record[key], str))


def _texts(turns: Any) -> Iterator[str]:
    for turn in turns if isinstance(turns, list) else ():
        yield from (text for text in (turn.values() if isinstance(turn, dict) else [turn]) if isinstance(text, str))


def _optional(search: Search, form: Format, taken: set[str]) -> Iterator[tuple[str, str]]:
    """Further parts of the record, each with its key; a key that has a value comes first."""
    for name, keys in OPTIONAL.items():
        if form is Format.text or (form is not Format.alpaca and name in ("input", "history", "reasoning")):
            continue
        there = [search.left[key] for key in keys if key in search.left and search.left[key] not in taken]
        if there:
            yield name, next((key for key in there if present(search.record[key])), there[0])


def _built(
    record: Mapping[str, Any], form: Format, names: dict[str, str], settings: RecordSettings, place: str
) -> tuple[Format, Named]:
    """The record under the names of ``form``; a question or an answer that is a list of turns makes it a chat."""
    values = Named(record, names)
    if "label" in names and "output" not in names:
        values["output"] = answer_of(values.pop("label"), settings.labels, f"{place}: {names['label']!r}")
        values.names["output"] = names["label"]
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
