"""Converted families are trained on what their own fine-tuning code makes of a chat, written here from its description."""

import random
from typing import Any

import pytest
import sentencepiece

from conftest import config_of
from hydraft.data.formats import Conversation, Turn
from hydraft.data.labels import IGNORE
from hydraft.data.tokenize import encode_one, prompt_ids, system_note
from published import RESERVED, fuzz, native_tokenizer, sentencepiece_model

USER, ASSISTANT, EOS = 195, 196, 2
EVERY, LAST = config_of().data, config_of("data.train_on=last").data
NAMED = ("<s>", "</s>", "<unk>", "<reserved_192>", "<reserved_193>")
Labelled = tuple[list[int], list[int]]
Chat = list[tuple[str, str]]
"""(question, answer) pairs."""


def chats(count: int) -> list[Chat]:
    """Chats of one to four rounds, of texts in which no special token is named."""
    draw = random.Random(6)
    contents = [text for text in fuzz(1000, seed=8) if text.strip() and not any(name in text for name in NAMED)]
    return [[(draw.choice(contents), draw.choice(contents)) for _ in range(draw.randint(1, 4))] for _ in range(count)]


def conversation(chat: Chat) -> Conversation:
    turns = [turn for q, a in chat for turn in (Turn("user", q), Turn("assistant", a))]
    return Conversation(tuple(turns))


@pytest.fixture(scope="module")
def baichuan(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return native_tokenizer("baichuan", tmp_path_factory.mktemp("tokenizers") / "baichuan")


@pytest.fixture(scope="module")
def chatglm2(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return native_tokenizer("chatglm2", tmp_path_factory.mktemp("tokenizers") / "chatglm2")


def baichuans_preprocessing(chat: Chat, spoken: Any) -> Labelled:
    """fine-tune.py of Baichuan2: the end of sequence is the label where each user token is the input, and at the end."""
    ids: list[int] = []
    labels: list[int] = []
    for question, answer in chat:
        asked, said = spoken.encode(question), spoken.encode(answer)
        ids += [USER, *asked, ASSISTANT, *said]
        labels += [EOS, *[IGNORE] * len(asked), IGNORE, *said]
    return [*ids, EOS], [*labels, EOS]


def chatglm2s_preprocessing(chat: Chat, spoken: Any, start: list[int]) -> Labelled:
    """ptuning/main.py of ChatGLM2-6B: what came before is one prompt, and the last answer is trained."""
    *history, (question, answer) = chat
    prompt = ""
    for index, (asked, said) in enumerate(history, 1):
        prompt += f"[Round {index}]\n\n问：{asked}\n\n答：{said}\n\n"
    prompt += f"[Round {len(chat)}]\n\n问：{question}\n\n答："
    before, said = [*start, *spoken.encode(prompt)], [*spoken.encode(answer), EOS]
    return before + said, [IGNORE] * len(before) + said


def test_baichuan2_learns_where_every_answer_ends(baichuan: Any) -> None:
    spoken = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(False, RESERVED))
    for chat in chats(200):
        ids, labels = baichuans_preprocessing(chat, spoken)
        labels[0] = IGNORE  # nothing comes before the first token, so its label is never used
        assert encode_one(conversation(chat), baichuan, EVERY) == [{"input_ids": ids, "labels": labels}]


def test_only_baichuan2s_last_answer_is_trained_with_train_on_last(baichuan: Any) -> None:
    for chat in chats(50):
        whole = conversation(chat)
        (example,) = encode_one(whole, baichuan, LAST)
        start = len(prompt_ids(whole, baichuan, LAST))
        assert example["labels"] == [IGNORE] * start + example["input_ids"][start:]


def test_baichuan2s_system_text_is_neither_trained_nor_ended(baichuan: Any) -> None:
    chat = conversation([("问", "答"), ("再问", "再答")])
    told = Conversation((Turn("system", "你是诗人。"), *chat.turns))
    (plain,), (example,) = (encode_one(which, baichuan, EVERY) for which in (chat, told))
    extra = len(example["input_ids"]) - len(plain["input_ids"])
    assert example["input_ids"][extra:] == plain["input_ids"]
    assert example["labels"] == [IGNORE] * extra + plain["labels"]


def test_chatglm2_trains_each_answer_behind_the_rounds_before_it(chatglm2: Any) -> None:
    spoken = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    start = chatglm2.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    for chat in chats(200):
        expected = [chatglm2s_preprocessing(chat[:rounds], spoken, start) for rounds in range(1, len(chat) + 1)]
        every = encode_one(conversation(chat), chatglm2, EVERY)
        assert [(example["input_ids"], example["labels"]) for example in every] == expected
        last = encode_one(conversation(chat), chatglm2, LAST)
        assert last == every[-1:]


TOLD = Conversation((Turn("system", "你是诗人。"), Turn("user", "写诗"), Turn("assistant", "好")))
NO_PLACE = "a system turn, which this model's chat template does not support"


def test_a_system_turn_that_is_not_supported_is_reported(chatglm2: Any, baichuan: Any) -> None:
    plain = Conversation(TOLD.turns[1:])
    assert (
        system_note([TOLD, plain], chatglm2, EVERY) == f"1 record has {NO_PLACE}: it is put before the first question"
    )
    assert str(system_note([TOLD] * 1200, chatglm2, EVERY)).startswith(f"1,200 records have {NO_PLACE}")
    assert system_note([plain], chatglm2, EVERY) is None
    assert system_note([TOLD], baichuan, EVERY) is None
    assert system_note([TOLD], chatglm2, config_of("data.template='{instruction}'").data) is None


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ("{% if m.role == 'user' %}U{{ m.content }}{% endif %}", "it is left out"),
        (
            "{% if m.role == 'user' %}U{% if not loop.first %}{{ messages[0].content.strip() }}\n\n{% endif %}{{ m.content }}{% endif %}",
            "it is put before the first question",
        ),
        ("{{ m.role }}{{ m.content }}", None),
    ],
)
def test_how_a_template_renders_a_system_turn_is_recognised(baichuan: Any, turn: str, said: str | None) -> None:
    template = baichuan.chat_template
    baichuan.chat_template = "{% for m in messages %}" + turn + "{% endfor %}"
    note = system_note([TOLD], baichuan, EVERY)
    baichuan.chat_template = template
    assert note == (said and f"1 record has {NO_PLACE}: {said}")
