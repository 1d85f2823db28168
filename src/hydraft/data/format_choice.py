"""Chooses the format of a record among those whose keys it has, and finds the key of each part. No torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydraft.config.choices import Format
from hydraft.data.chat_turns import role_of
from hydraft.data.column_names import BESIDE_TEXT, KEYS, OPTIONAL
from hydraft.data.key_search import SEARCHES, Search
from hydraft.data.keys import present
from hydraft.errors import ConfigError


def found(search: Search, form: Format) -> dict[Format, dict[str, str]]:
    """The formats whose keys a record has, each with the key of each part that was found.

    Args:
        form: ``auto``, or the only format whose keys are looked for.
    """
    names = {known: find(search) for known, find in SEARCHES.items() if form in (Format.auto, known)}
    return {known: each for known, each in names.items() if each is not None}


def chosen(search: Search, form: Format, candidates: dict[Format, dict[str, str]]) -> tuple[Format, dict[str, str]]:
    """The format of a record, and the key of each part.

    Raises:
        ConfigError: no format fits, or more than one.
    """
    only = form if form is not Format.auto else _only(search, candidates)
    names = {**candidates.get(only, {}), **search.given}
    for name, key in optional(search, only, set(names.values())):
        if name not in search.settings.columns:
            names.setdefault(name, key)
    return only, names


def _only(search: Search, found: dict[Format, dict[str, str]]) -> Format:
    """The one format that was found; a part without a value, and a copy of another part, do not count."""
    record, place = search.record, search.place
    if "input_ids" in record:
        raise ConfigError(f"{place}: has token ids ('input_ids'); records are texts, which are tokenized here")
    if not found:
        known = "; ".join(f"{form.value}: {', '.join(needed)}" for form, needed in KEYS.items())
        raise ConfigError(
            f"{place}: unknown format (its keys: {keys_of(record)}; known formats: {known}; others: data.columns)"
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


def optional(search: Search, form: Format, taken: set[str]) -> Iterator[tuple[str, str]]:
    """Further parts of the record, each with its key; a key that has a value comes first."""
    for name, keys in OPTIONAL.items():
        if form is Format.text or (form is not Format.alpaca and name in ("input", "history", "reasoning")):
            continue
        there = [search.left[key] for key in keys if key in search.left and search.left[key] not in taken]
        if there:
            yield name, next((key for key in there if present(search.record[key])), there[0])


def keys_of(record: Iterable[Any]) -> str:
    """The keys of a record, for messages."""
    return ", ".join(map(str, record)) or "none"
