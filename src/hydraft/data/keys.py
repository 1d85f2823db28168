"""Keys of a record that have a meaning: those that cannot be trained are refused, and texts that nothing reads are noted. No torch.

The names are those of OpenAI's fine-tuning files, TRL, LLaMA-Factory, ms-swift, axolotl and xtuner.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from hydraft.errors import ConfigError

WEIGHTS = (
    "weight", "loss", "loss_weight", "loss_mask", "loss_scale", "train", "train_on_turn", "trained", "training", "trainable",
    "output_with_loss",
)  # fmt: skip
"""Whether an answer is trained: 0 or 1, false or true."""

RECORD_WEIGHTS = (*WEIGHTS, "sample_weight", "example_weight", "instance_weight")

PARTIAL = ("train_detail", "training_detail", "token_weights", "token_weight", "mask", "masked")
"""Parts of an answer that are trained, in forms that are not read."""

_BETTER, _ANSWER = (
    "(chosen|rejected|preferred|non_preferred|dispreferred)",
    "(response|answer|output|message|completion|text)s?",
)
PREFERENCE = re.compile(f"{_BETTER}(_{_ANSWER})?|{_ANSWER}_{_BETTER}")
"""Two answers of which one is better (DPO)."""

TAGS = ("kto_tag", "label", "desirable")
"""Whether an answer is good, true or false (KTO)."""

MEDIA = ("images", "image", "videos", "video", "audios", "audio", "image_url", "input_audio")

SPECIAL = frozenset((*RECORD_WEIGHTS, *PARTIAL, *TAGS, *MEDIA))
"""All of them: most records have none."""

TEXTS = re.compile(
    "(abstract|answer|attempt|background|chain|chat|choice|completion|content|context|conversation|cot|dialog|dialogue|document"
    "|explanation|generation|history|hypothesis|input|instruction|knowledge|label|message|option|output|paragraph|passage|premise"
    "|problem|prompt|query|question|rationale|reasoning|reply|response|sentence|solution|summary|system|target|text|think"
    "|thinking|thought|trajector(y|ie))s?"
)
"""The last word of a key whose value looks like content."""


def present(value: Any) -> bool:
    """Whether a key has a value: null, NaN (an empty cell of a table), an empty text and an empty list are none."""
    if isinstance(value, float):
        return not math.isnan(value)
    return value is not None and value not in ("", [], {}, ())


@lru_cache(maxsize=10_000)
def looks_like_content(key: str) -> bool:
    """Whether a key is named as if it had text to train on: ``answer``, ``final_answer``, ``r1_solution_2``; not ``answer_id``."""
    if re.fullmatch("[a-e]|(option|choice).*", key.casefold()):  # of a question with several choices
        return True
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).casefold())
    return key == "reasoning_content" or (bool(words) and TEXTS.fullmatch(words[-1]) is not None)


@lru_cache(maxsize=10_000)
def is_preference(key: str) -> bool:
    """Whether a key is named as one of two answers of which one is better."""
    return PREFERENCE.fullmatch(key.casefold()) is not None


def check_record(record: Mapping[str, Any], read: frozenset[str], place: str) -> None:
    """Refuse a record whose keys ask for more than supervised fine-tuning of its text.

    Args:
        read: the keys of the file that are read as a part of the record; they have no other meaning then.

    Raises:
        ConfigError: it is a record of another objective, has images or sound, or a weight other than 1.
    """
    pair = [key for key in record if isinstance(key, str) and is_preference(key)]
    if not pair and SPECIAL.isdisjoint(record):
        return
    left = {str(key): value for key, value in record.items() if key not in read and present(value)}
    if read.isdisjoint(pair) and (both := [key for key in pair if key in left]):  # data.columns may choose one of two
        refuse_pair(left, both, place)
    for key in TAGS:
        if isinstance(left.get(key), bool) or str(left.get(key)).casefold() in ("true", "false"):
            refuse_judgement(key, place)
    check_media(left, place)
    for key in RECORD_WEIGHTS:
        if key in left and not (isinstance(left[key], (int, float)) and left[key] == 1):
            raise ConfigError(
                f"{place}: {key!r} is {left[key]!r}, and records have no weights: leave the record out, or the key; "
                "data.mix weights a whole source"
            )
    for key in PARTIAL:
        if key in left and not (key == "mask" and str(left[key]).casefold() in ("user", "human")):  # NeMo: what we do
            raise ConfigError(
                f"{place}: {key!r} is not supported; an answer is trained as a whole, or not (train: false)"
            )


def refuse_pair(record: Mapping[str, Any], pair: Sequence[str], place: str) -> NoReturn:
    """Refuse a preference pair where one answer is wanted.

    Raises:
        ConfigError: always; ``pair`` has the keys of its answers.
    """
    better = record.get("chosen") if "chosen" in pair else None
    whole = isinstance(better, list) and any(isinstance(turn, dict) for turn in better[:-1])
    way = f"to train the better answers: data.columns={'{messages: chosen}' if whole else '{output: chosen}'}"
    if better is None:
        way = f"to train the answers, leave out {' and '.join(map(repr, pair))}"
    elif isinstance(better, str) and better.lstrip().startswith("Human:"):  # HH-RLHF
        way = "to train the better answers, write their dialogues as messages"
    raise ConfigError(
        f"{place}: {' and '.join(map(repr, pair))} {'is' if len(pair) == 1 else 'are'} for preference training (DPO): "
        f"use objective=dpo; or {way}"
    )


def refuse_judgement(key: str, place: str) -> NoReturn:
    """Refuse a judged answer where every answer is to be trained.

    Raises:
        ConfigError: always; ``key`` has the judgement.
    """
    raise ConfigError(
        f"{place}: {key!r} says whether the answer is good, for preference training (KTO): use objective=kto; or keep only the "
        f"records with good answers, without {key!r}"
    )


def check_media(values: Mapping[str, Any], place: str) -> None:
    """Refuse images, videos and sound.

    Raises:
        ConfigError: names the key.
    """
    if SPECIAL.isdisjoint(values):
        return
    for key in MEDIA:
        if present(values.get(key)):
            raise ConfigError(f"{place}: has {key!r}; only text is trained")


def is_trained(turn: Mapping[str, Any], role: str, place: str) -> bool:
    """Whether a turn is trained, from its own keys; without any, answers are.

    Raises:
        ConfigError: a weight other than 0 and 1, two that differ, or a turn of the user that is to be trained.
    """
    if SPECIAL.isdisjoint(turn):
        return True
    found = {key: turn[key] for key in WEIGHTS if turn.get(key) is not None}
    for key, value in found.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise ConfigError(f"{place}: {key!r} must be 0 or 1 (an answer is trained or not), and is {value!r}")
        if value and role != "assistant":
            raise ConfigError(f"{place}: {key!r} is {value!r} in a turn of the role {role}; only answers are trained")
    for key in PARTIAL:
        if present(turn.get(key)):
            raise ConfigError(
                f"{place}: {key!r} is not supported; an answer is trained as a whole, or not (train: false)"
            )
    if len(set(map(bool, found.values()))) > 1:
        raise ConfigError(f"{place}: {' and '.join(map(repr, found))} contradict each other")
    return all(found.values())


def unread(values: Mapping[str, Any], read: frozenset[str], known: set[str]) -> Iterator[str]:
    """Keys that look like content, have a value and are not read, unless the value is one of the texts ``known``."""
    for key, value in values.items():
        if key in read or not isinstance(key, str) or not looks_like_content(key) or not present(value):
            continue
        if not isinstance(value, str) or value.strip() not in known:
            yield key
