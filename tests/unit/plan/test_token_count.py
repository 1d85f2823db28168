"""The estimated number of tokens, compared with the embedded model's tokenizer and with counts by hand."""

import pytest

from conftest import config_of
from hydraft.config.choices import TrainOn
from hydraft.data import mixture
from hydraft.data.labels import IGNORE
from hydraft.data.records import Conversation, Turn, ask
from hydraft.data.tokenize import encode
from hydraft.models.load import load_tokenizer
from hydraft.plan.token_count import MOST, TURN, Text, estimate, measure


def test_text_by_hand() -> None:
    assert estimate("你好") == pytest.approx(1.4)
    assert estimate("good") == pytest.approx(1.0)
    assert estimate("好ab", MOST) == pytest.approx(1.8)


def test_conversations_are_truncated_and_plain_texts_split_at_the_maximum_length() -> None:
    data = config_of("data.max_length=100").data
    long = Conversation((Turn("user", "问"), Turn("assistant", "字" * 1000)))
    assert measure([long], data) == Text(tokens=100, longest_answer=100, examples=1)
    made = measure([Conversation(plain="字" * 1000), ask("短")], data)
    assert made.tokens == round(700 + 0.7 + 2 * TURN)
    assert made.longest_answer == 100
    assert made.examples == 8 + 1  # 699 tokens that are predicted, 99 at a time


def test_only_the_answers_that_are_trained_count() -> None:
    data = config_of().data
    turns = tuple(
        Turn(role, text)
        for role, text in (("user", "问"), ("assistant", "答" * 50), ("user", "问"), ("assistant", "答"))
    )
    assert measure([Conversation(turns)], data).longest_answer == 51 + 2 * TURN
    data.train_on = TrainOn.last
    assert measure([Conversation(turns)], data).longest_answer == 1 + TURN


def test_the_estimate_for_shipped_records_is_about_right() -> None:
    """The embedded model's vocabulary of 3,072 needs one token per character, a large one 0.5 to 0.8."""
    config = config_of()
    conversations = mixture.training(config.data, config.seed)
    examples, _ = encode(list(conversations), load_tokenizer(config.model), config.data)
    made = measure(conversations, config.data)
    assert made.tokens == pytest.approx(sum(len(example["input_ids"]) for example in examples), rel=0.25)
    assert made.longest_answer >= max(sum(label != IGNORE for label in example["labels"]) for example in examples)
