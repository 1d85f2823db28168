"""What is said once about how records were rendered."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from hydraft.config.choices import Thinking
from hydraft.config.data import DataConfig
from hydraft.data import chat_template, thinking
from hydraft.data.records import Record


def of(records: Iterable[Record], tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> list[str]:
    """Lines about system turns that the chat template does not support, thoughts that are left out, and untrained conversations."""
    systems = left_out = empty = 0
    for chat in (each for record in records for each in record.conversations):
        systems += bool(chat.turns) and chat.turns[0].role == "system"
        off = thinking.wanted(chat, data) is Thinking.off
        left_out += off and any(turn.reasoning for turn in chat.turns)
        empty += chat.plain is None and not any(turn.trained for turn in chat.turns if turn.role == "assistant")
    notes = []
    if systems and data.template == "chat" and chat_template.of(tokenizer).system_in_question:
        notes.append(
            f"{_have(systems)} a system turn, which this model's chat template does not support: it is put before the first question"
        )
    if left_out:
        notes.append(f"{_have(left_out)} thoughts, which are left out (data.thinking=off)")
    if empty:
        notes.append(f"{_have(empty)} no answer that is trained, and {'is' if empty == 1 else 'are'} left out")
    return notes


def changed_since_2(records: Iterable[Record], tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> bool:
    """Whether records may be encoded otherwise than in version 2 of the cache, with which an earlier run may have been started."""
    turns = [turn for record in records for chat in record.conversations for turn in chat.turns]
    if any(turn.reasoning or turn.tool_calls or turn.role == "tool" or not turn.trained for turn in turns):
        return True
    if any(chat.tools or chat.template_variables for record in records for chat in record.conversations):
        return True
    if data.template != "chat" or not turns:
        return False
    template = chat_template.of(tokenizer)
    thinks = template.block.closing in template.source or bool(template.switched(Thinking.off))
    systems = any(turn.role == "system" for turn in turns) and not template.takes_system
    return thinks or systems or template.closing not in ("", str(tokenizer.eos_token))


def _have(count: int) -> str:
    return "1 record has" if count == 1 else f"{count:,} records have"
