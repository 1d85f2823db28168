"""Converted families are trained on the same tokens and labels as in their own fine-tuning code, reimplemented here."""

import random
from typing import Any

import pytest
import sentencepiece

from conftest import config_of
from hydraft.data import rendering_notes
from hydraft.data.labels import IGNORE
from hydraft.data.records import Conversation, Turn
from hydraft.data.tokenize import encode_one, prompt_ids
from published import RESERVED, fuzz, native_tokenizer, sentencepiece_model

USER, ASSISTANT, EOS = 195, 196, 2
EVERY, LAST = config_of().data, config_of("data.train_on=last").data
NAMED = ("<s>", "</s>", "<unk>", "<reserved_192>", "<reserved_193>")
Labelled = tuple[list[int], list[int]]
Chat = list[tuple[str, str]]
"""(question, answer) pairs."""


def chats(count: int) -> list[Chat]:
    """Chats of one to four rounds, without names of special tokens in their texts."""
    generator = random.Random(6)
    contents = [text for text in fuzz(1000, seed=8) if text.strip() and not any(name in text for name in NAMED)]
    return [
        [(generator.choice(contents), generator.choice(contents)) for _ in range(generator.randint(1, 4))]
        for _ in range(count)
    ]


def conversation(chat: Chat) -> Conversation:
    turns = [turn for q, a in chat for turn in (Turn("user", q), Turn("assistant", a))]
    return Conversation(tuple(turns))


@pytest.fixture(scope="module")
def baichuan(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return native_tokenizer("baichuan", tmp_path_factory.mktemp("tokenizers") / "baichuan")


@pytest.fixture(scope="module")
def chatglm2(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return native_tokenizer("chatglm2", tmp_path_factory.mktemp("tokenizers") / "chatglm2")


def baichuans_preprocessing(chat: Chat, sentencepiece_tokenizer: Any) -> Labelled:
    """fine-tune.py of Baichuan2: the label is the end of sequence at each user token and at the end of the chat."""
    ids: list[int] = []
    labels: list[int] = []
    for question, answer in chat:
        user, assistant = sentencepiece_tokenizer.encode(question), sentencepiece_tokenizer.encode(answer)
        ids += [USER, *user, ASSISTANT, *assistant]
        labels += [EOS, *[IGNORE] * len(user), IGNORE, *assistant]
    return [*ids, EOS], [*labels, EOS]


def chatglm2s_preprocessing(chat: Chat, sentencepiece_tokenizer: Any, start: list[int]) -> Labelled:
    """ptuning/main.py of ChatGLM2-6B: earlier rounds are part of the prompt, and only the last answer is trained."""
    *history, (question, answer) = chat
    prompt = ""
    for index, (user, assistant) in enumerate(history, 1):
        prompt += f"[Round {index}]\n\n问：{user}\n\n答：{assistant}\n\n"
    prompt += f"[Round {len(chat)}]\n\n问：{question}\n\n答："
    before, assistant = (
        [*start, *sentencepiece_tokenizer.encode(prompt)],
        [*sentencepiece_tokenizer.encode(answer), EOS],
    )
    return before + assistant, [IGNORE] * len(before) + assistant


def test_baichuan2_is_trained_to_end_every_answer(baichuan: Any) -> None:
    sentencepiece_tokenizer = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(False, RESERVED))
    for chat in chats(200):
        ids, labels = baichuans_preprocessing(chat, sentencepiece_tokenizer)
        labels[0] = IGNORE  # no token predicts the first one, so its label is never used
        assert encode_one(conversation(chat), baichuan, EVERY) == [{"input_ids": ids, "labels": labels}]


def test_only_baichuan2s_last_answer_is_trained_with_train_on_last(baichuan: Any) -> None:
    for chat in chats(50):
        whole = conversation(chat)
        (example,) = encode_one(whole, baichuan, LAST)
        start = len(prompt_ids(whole, baichuan, LAST))
        assert example["labels"] == [IGNORE] * start + example["input_ids"][start:]


def test_baichuan2s_system_text_is_not_trained_and_has_no_end_token(baichuan: Any) -> None:
    chat = conversation([("问", "答"), ("再问", "再答")])
    with_system_turn = Conversation((Turn("system", "你是诗人。"), *chat.turns))
    (plain,), (example,) = (encode_one(which, baichuan, EVERY) for which in (chat, with_system_turn))
    extra = len(example["input_ids"]) - len(plain["input_ids"])
    assert example["input_ids"][extra:] == plain["input_ids"]
    assert example["labels"] == [IGNORE] * extra + plain["labels"]


def test_chatglm2_trains_each_answer_after_the_earlier_rounds(chatglm2: Any) -> None:
    sentencepiece_tokenizer = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model())
    start = chatglm2.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    for chat in chats(200):
        expected = [
            chatglm2s_preprocessing(chat[:rounds], sentencepiece_tokenizer, start) for rounds in range(1, len(chat) + 1)
        ]
        every = encode_one(conversation(chat), chatglm2, EVERY)
        assert [(example["input_ids"], example["labels"]) for example in every] == expected
        last = encode_one(conversation(chat), chatglm2, LAST)
        assert last == every[-1:]


WITH_SYSTEM_TURN = Conversation((Turn("system", "你是诗人。"), Turn("user", "写诗"), Turn("assistant", "好")))
NOT_SUPPORTED = "a system turn, which this model's chat template does not support"


def test_a_system_turn_that_is_not_supported_is_reported(chatglm2: Any, baichuan: Any) -> None:
    plain = Conversation(WITH_SYSTEM_TURN.turns[1:])
    assert rendering_notes.of([WITH_SYSTEM_TURN, plain], chatglm2, EVERY) == [
        f"1 record has {NOT_SUPPORTED}: it is put before the first question"
    ]
    assert rendering_notes.of([WITH_SYSTEM_TURN] * 1200, chatglm2, EVERY)[0].startswith(
        f"1,200 records have {NOT_SUPPORTED}"
    )
    assert rendering_notes.of([plain], chatglm2, EVERY) == []
    assert rendering_notes.of([WITH_SYSTEM_TURN], baichuan, EVERY) == []
    assert rendering_notes.of([WITH_SYSTEM_TURN], chatglm2, config_of("data.template='{instruction}'").data) == []


LEFT_OUT = "{% if m.role == 'user' %}U{{ m.content }}{% endif %}"
REFUSED = "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}U{{ m.content }}"
MOVED = "{% if m.role == 'user' %}U{% if not loop.first %}{{ messages[0].content.strip() }}\n\n{% endif %}{{ m.content }}{% endif %}"


@pytest.mark.parametrize(
    ("turn", "noted"), [(LEFT_OUT, True), (REFUSED, True), (MOVED, True), ("{{ m.role }}U{{ m.content }}", False)]
)
def test_no_system_text_is_lost(baichuan: Any, turn: str, noted: bool) -> None:
    """A template that leaves it out or refuses it gets it ahead of the question, as Gemma 3's own template puts it."""
    template = baichuan.chat_template
    baichuan.chat_template = "{% for m in messages %}" + turn + "{% endfor %}"
    try:
        found = rendering_notes.of([WITH_SYSTEM_TURN], baichuan, EVERY)
        text = baichuan.decode(prompt_ids(WITH_SYSTEM_TURN, baichuan, EVERY))
    finally:
        baichuan.chat_template = template
    assert found == ([f"1 record has {NOT_SUPPORTED}: it is put before the first question"] if noted else [])
    assert text.strip() == ("U你是诗人。\n\n写诗" if noted else "systemU你是诗人。userU写诗")
