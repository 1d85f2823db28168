"""Reads records of preference training: pairs of a chosen and a rejected answer, and answers judged good or bad. No torch.

``preference_search.py`` finds their parts. Of each conversation only the last answer is trained; earlier ones are part of the prompt.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hydraft.config.choices import Format
from hydraft.data import formats, keys
from hydraft.data.chat_turns import turns_of
from hydraft.data.columns import recognise
from hydraft.data.dialogues import chat_of, is_whole
from hydraft.data.format_choice import keys_of
from hydraft.data.label_names import judgement
from hydraft.data.named import Named
from hydraft.data.preference_search import SIDES
from hydraft.data.records import Conversation, Judged, Pair, Turn
from hydraft.data.turn_order import check_order
from hydraft.errors import ConfigError

SCORE = re.compile("(?:avg[-_])?(?:score|rating)")
"""What is beside the side in the key of an answer's score: ``score_chosen``, ``chosen-rating``, ``rejected_avg_rating``."""


def read_pair(record: dict[str, Any], form: Format, place: str, number: int = 0) -> Pair:
    """A preference pair.

    Raises:
        ConfigError: it is none, the two answers follow different turns or are the same, or the rejected one has a higher score.
    """
    form, values = (form, record) if isinstance(record, Named) else recognise(record, place, form)
    values = _checked_pair(values, form, place)
    _check_scores(values, place)
    chosen, rejected = (_last_trained(_side(values, name, form, place, number), place) for name in SIDES)
    both = f"{values.key('chosen')!r} and {values.key('rejected')!r}"
    if "chosen" not in values.names:
        both = f"the answer and {values.key('rejected')!r}"
    if chosen.prompt != rejected.prompt:
        turns = zip(chosen.prompt, rejected.prompt, strict=False)
        at = next((n for n, (a, b) in enumerate(turns, 1) if a != b), min(len(chosen.turns), len(rejected.turns)))
        raise ConfigError(f"{place}: {both} have different turns before the last answer (from turn {at})")
    if chosen == rejected:
        raise ConfigError(f"{place}: {both} are the same")
    return Pair(chosen, rejected)


def read_judged(record: dict[str, Any], form: Format, place: str, number: int = 0) -> Judged:
    """An answer with its judgement: true or false, 1 or 0, under ``label``, ``kto_tag`` or ``desirable``.

    Raises:
        ConfigError: it has none, is a pair, or cannot be read.
    """
    form, values = (form, record) if isinstance(record, Named) else recognise(record, place, form)
    pair = [key for name, key in values.names.items() if name in SIDES] or [*filter(keys.is_preference, _left(values))]
    if _listed(values, form):
        pair = [values.key("output")]
    if pair:
        both = " and ".join(map(repr, pair))
        raise ConfigError(
            f"{place}: has {both}: a pair is trained with objective=dpo (ipo, orpo, simpo); objective=kto trains one answer a record"
        )
    if form is Format.text:
        raise ConfigError(f"{place}: is plain text, which has no answer that is good or bad: use objective=sft")
    tag = values.names.get("desirable") or next(filter(_left(values).__contains__, keys.TAGS), None)
    if tag is None:
        raise ConfigError(
            f"{place}: is a record of supervised fine-tuning: has no 'label' (true or false) that says whether its answer is good (its "
            f"keys: {keys_of(values.raw)}): use objective=sft, or name the key: data.columns={{label: …}}"
        )
    desirable = judgement(values.raw[tag])
    if desirable is None:
        raise ConfigError(
            f"{place}: {tag!r} must be true or false (whether the answer is good), and is {values.raw[tag]!r}"
        )
    conversation = formats.conversation_of(values.without(("desirable",), (tag,)), form, place, number)
    values.names["desirable"] = tag  # it was read
    return Judged(_last_trained(conversation, place), desirable)


def _left(values: Named) -> dict[str, Any]:
    """What has a value and is not read as a part of the record."""
    return {key: value for key, value in values.raw.items() if key not in values.read and keys.present(value)}


def _checked_pair(values: Named, form: Format, place: str) -> Named:
    """The pair, also if its answers are a list (LLaMA-Factory's ``output: [chosen, rejected]``)."""
    if form is Format.text:
        raise ConfigError(f"{place}: is plain text, which has no prompt and no answers: use objective=sft")
    if "rejected" in values.names:
        if "chosen" in values.names and not _has_prompt(values, form):
            both = " and ".join(repr(values.key(name)) for name in SIDES)
            raise ConfigError(
                f"{place}: has no prompt beside {both} (its keys: {keys_of(values.raw)}; another key can be it: "
                "data.columns={instruction: …})"
            )
        return values
    if _listed(values, form):
        key = values.key("output")
        names = {name: each for name, each in values.names.items() if name != "output"}
        made = Named(values.raw, {**names, "chosen": key, "rejected": key})
        made["chosen"], made["rejected"] = values["output"]
        return made
    raise ConfigError(f"{place}: {_why_no_pair(values)}")


def _listed(values: Named, form: Format) -> bool:
    """Whether the answer is a list of two, the better one first."""
    answers = values.get("output")
    return form is Format.alpaca and isinstance(answers, list) and len(answers) == 2


def _why_no_pair(values: Named) -> str:
    if better := [key for key in values.raw if isinstance(key, str) and keys.is_preference(key)]:
        if better[0] in values.read:
            return f"data.columns reads {better[0]!r} as the answer: leave it out of data.columns, or use objective=sft"
        return f"has {better[0]!r} and no other answer (its keys: {keys_of(values.raw)})"
    tags = [key for key in keys.TAGS if isinstance(judgement(_left(values).get(key)), bool)]
    if tag := values.names.get("desirable") or next(iter(tags), None):
        return f"is one answer with {tag!r}, which says whether it is good, and no pair: use objective=kto"
    return (
        f"is a record of supervised fine-tuning: has no 'chosen' and 'rejected' (its keys: {keys_of(values.raw)}): use objective=sft, or "
        "name the keys: data.columns={chosen: …, rejected: …}"
    )


def _has_prompt(values: Named, form: Format) -> bool:
    asked = {"instruction", "messages", "conversations"} & set(values.names)
    return form is not Format.alpaca or bool(asked) or all(is_whole(values[name]) for name in SIDES)


def _side(values: Named, name: str, form: Format, place: str, number: int) -> Conversation:
    """The conversation that ends with one of the two answers."""
    others = [key for key in values.raw if isinstance(key, str) and keys.is_preference(key)]
    rest = values.without(SIDES, others)
    if name not in values.names:
        return formats.read(rest, form, place, number)
    key, chat = values.key(name), chat_of(values[name])
    where = place if chat is None else f"{place}, {key!r}"
    if chat is not None and is_whole(values[name]):
        rest["messages"], rest.names["messages"] = chat, key
        return formats.read(rest, Format.messages, where, number)
    if "chosen" in values.names:
        formats.add_placeholder(rest, form)
    found = formats.read(rest, form, place, number)
    if chat is None:
        answers = [formats.text_answer(values, name, bool(found.tools), place)]
    else:
        answers = [turn for _, turn in turns_of(chat, key, where)]
    turns = (*found.prompt, *answers)
    check_order(list(enumerate(turns, 1)), where)
    return replace(found, turns=turns)


def _last_trained(conversation: Conversation, place: str) -> Conversation:
    """The conversation, of whose answers only the last is trained."""
    *before, last = conversation.turns
    if not last.trained:
        raise ConfigError(f"{place}: its last answer is not to be trained (weight: 0); leave the record out")
    return replace(conversation, turns=(*map(_untrained, before), last))


def _untrained(turn: Turn) -> Turn:
    return replace(turn, trained=False) if turn.role == "assistant" else turn


def _check_scores(values: Named, place: str) -> None:
    """Refuse a pair whose rejected answer has the higher score, unless ``data.columns`` has chosen it."""
    if any(name not in values.key(name).casefold() for name in SIDES):
        return
    found = {name: _score(values.raw, name) for name in SIDES}
    (better, high), (worse, low) = found["chosen"], found["rejected"]
    if high < low:
        raise ConfigError(
            f"{place}: {better!r} is {high:g} and {worse!r} is {low:g}: the rejected answer has the higher score; if it is the better "
            f"one: data.columns={{chosen: {values.key('rejected')}, rejected: {values.key('chosen')}}}"
        )


def _score(record: Mapping[str, Any], side: str) -> tuple[str, float]:
    """The key and the value of the score of an answer; NaN if it has none."""
    for key, value in record.items():
        words = str(key).casefold()
        rest = words.removeprefix(side)[1:] if words.startswith(side) else words.removesuffix(side)[:-1]
        if side in words and SCORE.fullmatch(rest) and isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(key), float(value)
    return side, float("nan")
