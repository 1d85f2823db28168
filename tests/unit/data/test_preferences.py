"""Preference records: the published forms are read as their authors describe them, and what is none is refused with the objective for it."""

import json
from typing import Any

import pytest
import record_forms
import yaml

from hydraft.config.choices import Format
from hydraft.data import held_out
from hydraft.data.formats import conversation_of
from hydraft.data.load import load
from hydraft.data.named import RecordSettings
from hydraft.data.preferences import read_judged, read_pair
from hydraft.data.record_reader import RecordReader
from hydraft.data.records import Conversation, Judged, Pair, Read
from hydraft.errors import ConfigError

READS: dict[str, Read] = {"dpo": read_pair, "kto": read_judged, "sft": conversation_of}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
OTHER = [CHAT[0], {"role": "assistant", "content": "c"}]


def reader(objective: str, **settings: Any) -> RecordReader:
    form = settings.pop("form", Format.auto)
    return RecordReader("f", form, RecordSettings(**settings), READS[objective])


def read(objective: str, record: Any, **settings: Any) -> Any:
    return reader(objective, **settings).record(record, "f, record 1", 1)


def refused(objective: str, record: Any, **settings: Any) -> str:
    with pytest.raises(ConfigError) as refusal:
        read(objective, record, **settings)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def shown(conversation: Conversation) -> list[list[str]]:
    """Role and text of each turn."""
    turns = []
    for turn in conversation.turns:
        calls = [f"{call['name']} {json.dumps(call['arguments'])}" for call in turn.tool_calls]
        turns.append([turn.role if turn.trained else "untrained", turn.text or " ".join(calls)])
    return turns


@pytest.mark.parametrize("form", record_forms.PREFERENCES, ids=lambda form: form["name"])
def test_a_published_form_is_read(form: dict[str, Any]) -> None:
    columns = {}
    for need in form.get("needs", []):
        columns = yaml.safe_load(need.removeprefix("data.columns="))
    objective = "dpo" if "dpo" in form else "kto"
    used = reader(objective, columns=columns)
    record = used.record(form["record"], "f, record 1", 1)
    if isinstance(record, Pair):
        prompt, chosen, rejected = form["dpo"]
        assert shown(record.chosen) == [*prompt, ["assistant", chosen]]
        assert shown(record.rejected) == [*prompt, ["assistant", rejected]]
    else:
        assert isinstance(record, Judged)
        assert [shown(record.conversation), record.desirable] == form["kto"]
    for each in record.conversations:
        assert [tool["function"]["name"] for tool in each.tools] == form.get("tools", [])
    assert [note for note in used.notes() if "not read" in note and "original_" not in note] == []
    assert f"objective={objective}" in refused("kto" if objective == "dpo" else "dpo", form["record"], columns=columns)


@pytest.mark.parametrize("language", record_forms.PAGES)
def test_the_documents_have_the_table(language: str) -> None:
    assert record_forms.preferences(language) in record_forms.PAGES[language].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("objective", "record", "reason"),
    [
        ("dpo", {"instruction": "a", "output": "b"}, "is a record of supervised fine-tuning: has no 'chosen' and 'rejected' (its keys: instruction, output): use objective=sft"),
        ("dpo", {"messages": CHAT}, "use objective=sft"),
        ("dpo", {"text": "a"}, "is plain text, which has no prompt and no answers: use objective=sft"),
        ("dpo", {**PAIR, "prompt": None, "text": "a"}, "is plain text"),
        ("dpo", {"prompt": "a", "chosen": "b"}, "has 'chosen' and no other answer"),
        ("dpo", {"chosen": "b", "rejected": "c"}, "has no prompt beside 'chosen' and 'rejected' (its keys: chosen, rejected; another key can be it"),
        ("dpo", {**PAIR, "rejected": "b"}, "'chosen' and 'rejected' are the same"),
        ("dpo", {"messages": CHAT, "rejected_response": "b"}, "the answer and 'rejected_response' are the same"),
        ("dpo", {"chosen": CHAT, "rejected": CHAT}, "'chosen' and 'rejected' are the same"),
        ("dpo", {**PAIR, "rejected": " "}, "'rejected' is empty"),
        ("dpo", {**PAIR, "chosen": 3}, "'chosen' must be text, and is a number"),
        ("dpo", {"chosen": CHAT, "rejected": CHAT[:1]}, "f, record 1, 'rejected': does not end with an answer of the assistant"),
        ("dpo", {"chosen": CHAT, "rejected": [*CHAT, *OTHER]}, "have different turns before the last answer (from turn 2)"),
        ("dpo", {"chosen": CHAT, "rejected": [{"role": "user", "content": "d"}, OTHER[1]]}, "(from turn 1)"),
        ("dpo", {"chosen": [CHAT[0], {**CHAT[1], "weight": 0}], "rejected": OTHER}, "its last answer is not to be trained"),
        ("dpo", {"prompt": CHAT, "chosen": CHAT[1:], "rejected": OTHER[1:]}, "turn 3 has the role assistant, expected user or tool"),
        ("dpo", {**PAIR, "score_chosen": 1.0, "score_rejected": 2.5}, "'score_chosen' is 1 and 'score_rejected' is 2.5: the rejected answer has the higher score"),
        ("dpo", {**PAIR, "chosen-rating": 1, "rejected-rating": 5}, "if it is the better one: data.columns={chosen: rejected, rejected: chosen}"),
        ("dpo", {**PAIR, "image": "x.png"}, "has 'image'; only text is trained"),
        ("dpo", {**PAIR, "weight": 0.5}, "records have no weights"),
        ("dpo", {**PAIR, "question": "d"}, "'prompt' and 'question' may each be the question"),
        ("kto", {"prompt": "a", "completion": "b"}, "is a record of supervised fine-tuning: has no 'label' (true or false)"),
        ("kto", {"prompt": "a", "completion": "b", "label": None}, "use objective=sft"),
        ("kto", {"prompt": "a", "completion": "b", "label": "good"}, "'label' must be true or false (whether the answer is good), and is 'good'"),
        ("kto", {"prompt": "a", "completion": "b", "label": 2}, "and is 2"),
        ("kto", {"prompt": "a", "completion": "", "label": True}, "'completion' is empty"),
        ("kto", {"messages": CHAT, "kto_tag": True, "rejected_response": "c"}, "has 'rejected_response': a pair is trained with objective=dpo"),
        ("kto", {"text": "a", "desirable": True}, "is plain text"),
        ("sft", {"chosen": "b", "rejected": "c"}, "'chosen' and 'rejected' are for preference training (DPO): use objective=dpo"),
        ("sft", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}, "or to train the better answers, write their dialogues as messages"),
        ("sft", {"prompt": "a", "completion": "b", "label": True}, "use objective=kto; or keep only the records with good answers"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_way_out(objective: str, record: dict[str, Any], reason: str) -> None:
    assert reason in refused(objective, record)


def test_columns_swap_the_answers_and_say_what_is_read() -> None:
    swapped = {"chosen": "rejected", "rejected": "chosen"}
    scored = {**PAIR, "score_chosen": 1.0, "score_rejected": 2.5}
    assert read("dpo", scored, columns=swapped).chosen.reference == "c"
    named = {"instruction": "a", "good": "b", "bad": "c"}
    columns = {"chosen": "good", "rejected": "bad"}
    assert read("dpo", named, columns=columns) == read("dpo", PAIR)
    assert "'good' and 'bad' are for preference training (DPO)" in refused("sft", named, columns=columns)
    assert "has no 'bad' (data.columns" in refused("dpo", {"instruction": "a", "good": "b"}, columns=columns)
    one = "data.columns reads 'chosen' as the answer: leave it out of data.columns, or use objective=sft"
    assert one in refused("dpo", PAIR, columns={"output": "chosen"})
    assert read("sft", PAIR, columns={"output": "chosen"}).reference == "b"
    judged = {"prompt": "a", "completion": "b", "good": True}
    assert "'good' says whether the answer is good" in refused("sft", judged, columns={"label": "good"})
    said = [{"who": "user", "said": "a"}, {"who": "assistant", "said": "b"}]
    turns = {"chosen": [{"who": "user", "said": "a"}, {"who": "assistant", "said": "x"}], "rejected": said}
    record = read("dpo", turns, columns={"role": "who", "content": "said"})
    assert shown(record.rejected) == [["user", "a"], ["assistant", "b"]]


def test_thoughts_tools_and_template_variables_are_read() -> None:
    record = read("dpo", {
        "messages": [{"role": "user", "content": "a"}],
        "chosen": {"role": "assistant", "content": "b", "reasoning_content": "t"},
        "rejected": "<think>u</think>c",
        "tools": [{"name": "f"}],
        "chat_template_kwargs": {"enable_thinking": True},
        "task": "qa",
    })  # fmt: skip
    assert [(each.turns[-1].reasoning, each.reference) for each in record.conversations] == [("t", "b"), ("u", "c")]
    assert all(each.template_variables == {"enable_thinking": True} for each in record.conversations)
    assert all(len(each.tools) == 1 and each.task == "qa" for each in record.conversations)
    assert (record.task, record.number) == ("qa", 1)


def test_an_answer_with_several_turns_is_trained_at_its_end() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    turns = [call, {"role": "tool", "content": "r"}]
    record = read("dpo", {"prompt": "a", "chosen": [*turns, CHAT[1]], "rejected": [*turns, OTHER[1]]})
    assert [turn.trained for turn in record.chosen.turns if turn.role == "assistant"] == [False, True]
    assert record.chosen.prompt == record.rejected.prompt


def test_tables_have_chats_as_json(tmp_path: Any) -> None:
    def cell(value: Any) -> str:
        return '"' + json.dumps(value).replace('"', '""') + '"'

    file = tmp_path / "a.csv"
    file.write_text(f"chosen,rejected\n{cell(CHAT)},{cell(OTHER)}\n")
    (record,) = load(str(file), "data.train", read=read_pair)
    assert record == read("dpo", {"chosen": CHAT, "rejected": OTHER})
    file.write_text(f"prompt,chosen,rejected\n{cell(CHAT[:1])},b,c\n")
    assert load(str(file), "data.train", read=read_pair) == [read("dpo", {**PAIR, "prompt": CHAT[:1]})]
    file.write_text("instruction,output,kto_tag\na,b,False\n")
    (judged,) = load(str(file), "data.train", read=read_judged)
    assert isinstance(judged, Judged) and not judged.desirable


def test_a_judgement_is_part_of_the_content() -> None:
    good, bad, same = (read("kto", {"prompt": "a", "completion": "b", "label": label}) for label in (1, "false", True))
    assert held_out.digest(good, 0) == held_out.digest(same, 0) != held_out.digest(bad, 0)
    assert held_out.digest(good, 0) != held_out.digest(good.conversation, 0)


def test_the_names_that_were_guessed_are_printed_and_a_copy_is_not() -> None:
    used = reader("dpo")
    used.record(
        {"question": "a", "response_chosen": "b", "response_rejected": "c", "answer": "b", "rationale": "r"}, "f", 1
    )
    assert used.notes() == [
        "f: instruction from 'question', chosen from 'response_chosen', rejected from 'response_rejected' (data.columns)",
        "f: 'rationale' is not read (data.columns)",
    ]
