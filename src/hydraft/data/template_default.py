"""Makes thinking on or off the default of a chat template, so that every program that reads the saved tokenizer follows the training."""

import copy
from typing import Any

from transformers import PreTrainedTokenizerBase

from hydraft.config.choices import Thinking
from hydraft.config.data import DataConfig
from hydraft.data import chat_template
from hydraft.data.records import Conversation
from hydraft.data.rendering import Rendering


def with_default(tokenizer: PreTrainedTokenizerBase, mode: Thinking) -> Any:
    """The tokenizer's chat template (or templates, by name) with ``mode`` as its default; unchanged if it already is, or cannot be."""
    if not tokenizer.chat_template or mode is Thinking.auto:
        return tokenizer.chat_template
    if isinstance(tokenizer.chat_template, dict):
        named = {name: _with_source(tokenizer, source) for name, source in tokenizer.chat_template.items()}
        return {name: with_default(each, mode) for name, each in named.items()}
    source = chat_template.of(tokenizer).source
    wanted = _prompt(tokenizer, mode)
    if _prompt(tokenizer, Thinking.auto) == wanted:
        return source
    for candidate in (_with_variables(tokenizer, source, mode), _wrapped(tokenizer, source)):
        made = _with_source(tokenizer, candidate)
        if _prompt(made, Thinking.auto) == wanted and _prompt(made, mode) == wanted:
            return candidate
    return source


def _prompt(tokenizer: PreTrainedTokenizerBase, mode: Thinking) -> str:
    question = Conversation((*chat_template.ASKED,))
    return Rendering(question, tokenizer, DataConfig(template="chat")).prompt(question.prompt, mode)


def _with_source(tokenizer: PreTrainedTokenizerBase, source: str) -> PreTrainedTokenizerBase:
    made = copy.copy(tokenizer)
    made.chat_template = source
    return made


def _with_variables(tokenizer: PreTrainedTokenizerBase, source: str, mode: Thinking) -> str:
    """The template with the variables that it reads set, unless the caller does."""
    switched = chat_template.of(tokenizer).switched(mode)
    lines = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}"
        for name, value in switched.items()
    )
    return (
        lines + ("\n" if lines and source.startswith("\n") else "") + source
    )  # a line break after a block is not rendered


def _literal(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"'{value}'"


def _wrapped(tokenizer: PreTrainedTokenizerBase, source: str) -> str:
    """A template that always opens thoughts, or leaves them to the model, with a variable that makes them empty unless it is true."""
    template = chat_template.of(tokenizer)
    block = template.block
    begun, closing = repr(block.opening + block.inside), repr(block.closing)
    more = (
        f"{{%- elif not rendered.rstrip().endswith({closing}) %}}{{{{- {template.empty!r} }}}}"
        if template.empty
        else ""
    )
    body = source.removesuffix("\n")  # Jinja does not render the last line break of a template
    return (
        f"{{% set rendered +%}}{body}{{%+ endset %}}{{{{- rendered }}}}"
        "{%- if add_generation_prompt and not (enable_thinking | default(false)) %}"
        f"{{%- if rendered.endswith({begun}) %}}{{{{- {block.inside + block.closing + block.after!r} }}}}{more}{{%- endif %}}"
        "{%- endif %}"
    )
