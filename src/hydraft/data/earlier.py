"""Which records earlier versions encoded differently: with these, a run of theirs is not resumed, and their cache is not used."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from hydraft.config.choices import Thinking
from hydraft.config.data import DataConfig
from hydraft.data import chat_template, thinking
from hydraft.data.records import Conversation, Record, Turn


def differs(records: Iterable[Record], tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> bool:
    """Whether earlier versions encoded any of the records differently, long plain texts aside, which they cut."""
    template_differs: bool | None = None
    for conversation in (each for record in records for each in record.conversations):
        if conversation.plain is not None:
            continue
        if template_differs is None:
            template_differs = _template_differs(tokenizer, data)
        if template_differs or _differs(conversation, tokenizer, data):
            return True
    return False


def _template_differs(tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> bool:
    """They trained empty thoughts, ended every answer with end-of-sequence, and took doubled braces of a plain template for one."""
    if data.template != "chat":
        return "{{" in data.template or "}}" in data.template
    template = chat_template.of(tokenizer)
    thinks = bool(template.switched(Thinking.off)) or any(closing in template.source for _, closing in thinking.MARKS)
    return thinks or template.closing not in ("", str(tokenizer.eos_token))


def _differs(conversation: Conversation, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> bool:
    """They ignored tools, thoughts and weights, and left out system turns that a template has no place for."""
    if conversation.tools or conversation.template_variables or any(map(_turn_differs, conversation.turns)):
        return True
    system = conversation.turns[0].role == "system"
    return system and data.template == "chat" and not chat_template.of(tokenizer).takes_system


def _turn_differs(turn: Turn) -> bool:
    return bool(turn.reasoning or turn.tool_calls) or not turn.trained or turn.role == "tool"
