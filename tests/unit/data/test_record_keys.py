"""Keys of a record with a meaning are followed or refused, and what is guessed or not read is noted."""

import json
from typing import Any

import pytest

from hydraft.config.choices import Format, TrainOn
from hydraft.data.named import RecordSettings
from hydraft.data.record_reader import RecordReader
from hydraft.data.records import Conversation, Turn
from hydraft.errors import ConfigError

PAIR = {"instruction": "a", "output": "b"}
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def read(record: Any, form: Format = Format.auto, **settings: Any) -> tuple[Conversation, list[str]]:
    """A record, and the notes on it."""
    reader = RecordReader("f", form, RecordSettings(**settings))
    found = reader.record(record, "f, record 1", 1)
    assert isinstance(found, Conversation)
    return found, reader.notes()


def refused(record: Any, form: Format = Format.auto, **settings: Any) -> str:
    """The refusal of a record."""
    with pytest.raises(ConfigError) as refusal:
        read(record, form, **settings)
    return str(refusal.value)


def answered(**keys: Any) -> dict[str, Any]:
    """Two answers; the first has these keys."""
    first = {"role": "assistant", "content": "b", **keys}
    return {"messages": [{"role": "user", "content": "a"}, first, *CHAT["messages"]]}


@pytest.mark.parametrize(
    ("keys", "trained"),
    [
        ({"weight": 0}, False),
        ({"weight": 1}, True),
        ({"weight": 0.0}, False),
        ({"weight": None}, True),
        ({"loss": False}, False),
        ({"loss_weight": 0}, False),
        ({"train": False}, False),
        ({"train_on_turn": False}, False),
        ({"trainable": 0}, False),
        ({"trained": False}, False),
        ({"weight": 1, "loss": True}, True),
    ],
)
def test_an_answer_is_trained_as_its_keys_say(keys: dict[str, Any], trained: bool) -> None:
    record, notes = read(answered(**keys))
    assert [turn.trained for turn in record.turns] == [True, trained, True, True]
    assert notes == []


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (answered(weight=0.5), "turn 2: 'weight' must be 0 or 1 (an answer is trained or not), and is 0.5"),
        (answered(weight="0"), "turn 2: 'weight' must be 0 or 1"),
        (answered(weight=1, train=False), "turn 2: 'weight' and 'train' contradict each other"),
        (answered(train_detail=[{"train": False}]), "turn 2: 'train_detail' is not supported"),
        ({"messages": [{**CHAT["messages"][0], "train": True}, CHAT["messages"][1]]}, "turn 1: 'train' is True in a turn of the role user; only answers are trained"),
        ({"messages": [CHAT["messages"][0], {**CHAT["messages"][1], "weight": 0}]}, "none of its answers is trained"),
        ({**PAIR, "weight": 2}, "'weight' is 2, and records have no weights"),
        ({**CHAT, "sample_weight": 0.3}, "'sample_weight' is 0.3, and records have no weights"),
        ({**PAIR, "train": False}, "'train' is False, and records have no weights"),
        ({"text": "a", "weight": 0}, "'weight' is 0, and records have no weights"),
        ({**CHAT, "mask": "Assistant"}, "'mask' is not supported"),
        ({**CHAT, "rejected_response": "c"}, "'rejected_response' is for preference training (DPO)"),
        ({**CHAT, "label": True}, "'label' says whether the answer is good"),
        ({**CHAT, "kto_tag": False}, "'kto_tag' says whether the answer is good"),
        ({"prompt": "a", "completion": "b", "label": True}, "'label' says whether the answer is good"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "to train the better answers: data.columns={output: chosen}"),
        ({"input": {"messages": []}, "preferred_output": [], "non_preferred_output": [{}]}, "'non_preferred_output' is for preference training (DPO)"),
        ({**PAIR, "response_rejected": "c"}, "to train the answers, leave out 'response_rejected'"),
        ({**PAIR, "label": "False"}, "'label' says whether the answer is good"),
        (answered(reasoning_content="t", thinking="u"), "turn 2: has different thoughts in two places"),
        ({"text": "a", "label": [1, 2]}, "'label' must be text, and is a list"),
        ({"input_ids": [1], "labels": [1]}, "has token ids ('input_ids')"),
        ({**CHAT, "videos": ["v.mp4"]}, "has 'videos'; only text is trained"),
    ],
)  # fmt: skip
def test_a_key_that_cannot_be_followed_is_refused(record: dict[str, Any], reason: str) -> None:
    assert reason in refused(record)


def test_the_last_answer_must_be_trained_if_no_other_is() -> None:
    record = {"messages": [*CHAT["messages"], *answered(weight=0)["messages"][:2]]}
    assert [turn.trained for turn in read(record)[0].turns] == [True, True, True, False]
    assert "data.train_on=last trains no other" in refused(record, train_on=TrainOn.last)


def test_keys_without_a_value_mean_nothing() -> None:
    empty = {
        "images": [],
        "tools": "",
        "rejected_response": None,
        "weight": 1,
        "label": None,
        "chat_template_kwargs": None,
    }
    assert read({**CHAT, **empty}) == read(CHAT)


def test_variables_of_the_template_are_kept() -> None:
    assert read({**CHAT, "chat_template_kwargs": {"enable_thinking": False}})[0].template_variables == {
        "enable_thinking": False
    }


@pytest.mark.parametrize(
    "key",
    ["label", "target", "answer", "rationale", "response", "cot", "final_answer", "r1_solution_2", "A", "option_b"],
)
def test_a_key_that_looks_like_content_is_noted_once(key: str) -> None:
    reader = RecordReader("f")
    for number in (1, 2):
        reader.record({**PAIR, key: "c"}, f"f, record {number}", number)
    assert reader.notes() == [f"f: {key!r} is not read (data.columns)"]


@pytest.mark.parametrize(
    "record",
    [
        {"Question": "a", "Answer": "b"},
        {**CHAT, "conversations": None, "text": "", "prompt": None},
        {"instruction": "", "output": "", "messages": CHAT["messages"]},
        {"messages": json.dumps(CHAT["messages"])},
        {"instruction": "a", "output": "b", "response": None, "text": "### a ### b"},
    ],
)
def test_case_empty_parts_and_copies_do_not_matter(record: dict[str, Any]) -> None:
    assert read(record)[0].turns == (Turn("user", "a"), Turn("assistant", "b"))


def test_metadata_and_copies_are_not_noted() -> None:
    metadata = {
        "id": 1,
        "source": "x",
        "category": "y",
        "lang": "zh",
        "score": 3,
        "prompt_id": "z",
        "question_type": "q",
    }
    assert read({**CHAT, **metadata, "prompt": "a"})[1] == []


def test_keys_of_a_turn_are_noted_too() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "thought": "t"}]
    assert read({"messages": turns})[1] == ["f: 'thought' is not read (data.columns)"]


@pytest.mark.parametrize(
    ("record", "columns"),
    [
        ({"q": "a", "a": "b"}, {"instruction": "q", "output": "a"}),
        ({"question": "a", "final": "b", "answer": "x"}, {"output": "final"}),
        ({"log": CHAT["messages"]}, {"messages": "log"}),
        ({"log": [{"speaker": "human", "said": "a"}, {"speaker": "bot", "said": "b"}]}, {"conversations": "log", "role": "speaker", "content": "said"}),
        ({"messages": [{"who": "user", "content": "a"}, {"who": "assistant", "content": "b"}]}, {"role": "who"}),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"output": "chosen"}),
        ({"prompt": "a", "chosen": CHAT["messages"], "rejected": []}, {"messages": "chosen"}),
        ({"conversations": [{"from": "human", "value": "a"}], "chosen": {"from": "gpt", "value": "b"}, "rejected": {}}, {"output": "chosen"}),
    ],
)  # fmt: skip
def test_data_columns_names_the_keys(record: dict[str, Any], columns: dict[str, str]) -> None:
    assert read(record, columns=columns)[0].turns == (Turn("user", "a"), Turn("assistant", "b"))


def test_a_column_that_is_missing_is_the_fault_of_its_record_or_of_the_setting() -> None:
    assert "record 1: has no 'q' (data.columns; its keys: a)" in refused({"a": "b"}, columns={"instruction": "q"})
    assert refused(PAIR, columns={"input": "more"}) == "data.columns={input: more}: no record of f has 'more'"
    assert read({"q": "x"}, columns={"text": "q"})[0].plain == "x"


def test_labels_are_answers() -> None:
    names = {"labels": ["负面", "正面"]}
    for label in (1, "1", 1.0, True, "正面"):
        assert read({"text": "a", "label": label}, **names)[0].reference == "正面"
    assert read({"review": "a", "label": "好"})[0].reference == "好"
    assert "give the answers: data.labels=" in refused({"text": "a", "label": 0})
    assert "is 2, and data.labels has the answers for 0 to 1" in refused({"text": "a", "label": 2}, **names)
    assert "is '中', which is none of data.labels" in refused({"text": "a", "label": "中"}, **names)
    assert (
        read({"title": "a", "class": 0}, columns={"instruction": "title", "label": "class"}, **names)[0].reference
        == "负面"
    )


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({**CHAT, "text": "x"}, "has the keys of messages and text; choose one with data.format=messages, or with data.columns"),
        ({**PAIR, "text": "x"}, "has the keys of alpaca and text"),
        ({**CHAT, "conversations": [["c", "d"]]}, "has the keys of messages and sharegpt"),
        ({"question": "a", "prompt": "c", "answer": "b"}, "'prompt' and 'question' may each be the question; choose with data.columns={instruction: …}"),
        ({"text": "a", "summary": "b"}, "choose data.format=text or data.columns={instruction: text, output: summary}"),
        ({"text": "a", "role": "user"}, "is one turn of a chat"),
        ({"question": "a"}, "has no 'output' (its keys: question)"),
        ({"instruction": "a", "output": ["b", "c"]}, "'output' must be text, and is a list"),
        ({"text": "a", "chosen": "b", "rejected": "c"}, "for preference training (DPO)"),
    ],
)  # fmt: skip
def test_what_can_be_read_in_two_ways_is_refused(record: dict[str, Any], reason: str) -> None:
    assert reason in refused(record)


def test_a_template_needs_a_place_for_what_the_records_have() -> None:
    record = {**PAIR, "input": "c"}
    assert refused(record, template="Q: {instruction}").endswith(
        "has 'input', for which data.template has no place: add {input} to it"
    )
    assert read(record, template="Q: {instruction} {input}")[0].turns[0].input == "c"
    assert read({**PAIR, "input": ""}, template="Q: {instruction}")[0].turns[0].input == ""


def test_files_of_a_source_may_differ_and_records_of_a_file_may_not() -> None:
    reader = RecordReader("f")
    reader.record(PAIR, "a.json, record 1", 1, "a.json")
    reader.record(CHAT, "b.json, record 1", 2, "b.json")
    reader.record(CHAT["messages"], "b.json, record 2", 3, "b.json")
    with pytest.raises(ConfigError, match="record 2 is messages and record 4 is alpaca; a file must have one format"):
        reader.record(PAIR, "b.json, record 3", 4, "b.json")
