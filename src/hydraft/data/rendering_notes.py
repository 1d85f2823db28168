"""What is said once about how records were rendered."""

from collections.abc import Iterable
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from hydraft.config.choices import Thinking
from hydraft.config.data import DataConfig
from hydraft.data import chat_template, thinking
from hydraft.data.records import Conversation, Pair, Record, Turn


def of(records: Iterable[Record], tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> list[str]:
    """Lines about system turns that the chat template does not support, thoughts that are left out, and untrained conversations."""
    systems = left_out = empty = same = 0
    for record in records:
        chat = record.conversations[0]
        systems += bool(chat.turns) and chat.turns[0].role == "system"
        off = thinking.wanted(chat, data) is Thinking.off
        left_out += off and any(turn.reasoning for each in record.conversations for turn in each.turns)
        same += off and isinstance(record, Pair) and _bare(record.chosen) == _bare(record.rejected)
        empty += chat.plain is None and not any(turn.trained for turn in chat.turns if turn.role == "assistant")
    notes = []
    if systems and data.template == "chat" and chat_template.of(tokenizer).system_in_question:
        notes.append(
            f"{_have(systems)} a system turn, which this model's chat template does not support: it is put before the first question"
        )
    if left_out:
        notes.append(f"{_have(left_out)} thoughts, which are left out (data.thinking=off)")
    if same:
        notes.append(f"{_have(same)} two answers that differ only in their thoughts: without these, they train nothing")
    if empty:
        notes.append(f"{_have(empty)} no answer that is trained, and {'is' if empty == 1 else 'are'} left out")
    return notes


def _have(count: int) -> str:
    return "1 record has" if count == 1 else f"{count:,} records have"


def _bare(chat: Conversation) -> list[Turn]:
    """The turns without their thoughts."""
    return [replace(turn, reasoning="") for turn in chat.turns]
