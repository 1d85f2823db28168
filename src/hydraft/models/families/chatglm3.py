"""ChatGLM3-6B as transformers' GLM: the tensors of ChatGLM2, with tokens for the roles of a chat, and tools.

Published as ``THUDM/chatglm3-6b``, ``-base``, ``-32k`` and ``-128k`` (config.json, modeling_chatglm.py, tokenization_chatglm.py;
https://github.com/THUDM/ChatGLM3, PROMPT.md and finetune_demo). The long variants multiply the base of their rotary positions by
``rope_ratio``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydraft.errors import ConfigError
from hydraft.models.families import chatglm2
from hydraft.models.families.base import Native
from hydraft.models.families.layout import Rule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAME = "chatglm3"
MODELS: tuple[str, ...] = ("ChatGLM3-6B",)
REVERSIBLE = True
DROPPED = chatglm2.DROPPED
LORA_NAMES = chatglm2.LORA_NAMES

ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
SPECIALS = (*chatglm2.SPECIALS, *ROLES)
"""The ids after SentencePiece's own, in this order: 64789 to 64797 in the published models."""

ANSWER_ENDS = ("<|user|>", "<|observation|>")
"""Tokens that end an answer besides ``</s>``: the next turn's, and that of a tool's result (``chat`` of modeling_chatglm.py)."""


def _architecture(positions: int, ratio: int) -> Native:
    """A variant's context and ``rope_ratio``, by its config.json."""
    scaled = {"rope_theta": 10000.0 * ratio}
    return chatglm2.ARCHITECTURES["chatglm2"] | {
        "max_position_embeddings": positions,
        "rope_parameters": chatglm2.CONSTANTS["rope_parameters"] | scaled,
    }


ARCHITECTURES: dict[str, Native] = {
    "chatglm3": _architecture(8192, 1),
    "chatglm3-base": _architecture(32768, 1),
    "chatglm3-32k": _architecture(32768, 50),
    "chatglm3-128k": _architecture(131072, 500),
}
"""What all sizes share, by the ``architecture`` of conf/model."""

CHAT_TEMPLATE = """\
{#- build_chat_input of tokenization_chatglm.py: a token for the role, metadata (the tool that an answer calls), a line break
and the text. Both are encoded apart, and SentencePiece puts a space ahead of each; a token takes the first of them. Nothing
closes a turn but the token of the next; the published training ends a whole chat with </s>. Tools are listed in the system's
text, and called as in PROMPT.md and finetune_chatmodel_demo. -#}
{%- macro turn(role, metadata, text) -%}
  {{- '<|' ~ role ~ '|>' ~ metadata ~ '\\n' ~ (' ' if text else '') ~ text -}}
{%- endmacro -%}
{%- macro listed(given) -%}
  {%- set bare = namespace(tools=[]) -%}
  {%- for tool in given -%}
    {%- set bare.tools = bare.tools + [tool.function if tool.function is defined else tool] -%}
  {%- endfor -%}
  {{- bare.tools | tojson(indent=4) -}}
{%- endmacro -%}
{%- set chat = namespace(waiting=false, offered=not tools) -%}
{{- '[gMASK]<sop>' -}}
{%- if tools and messages[0]['role'] != 'system' -%}
  {{- turn('system', '', 'Answer the following questions as best as you can. You have access to the following tools:\\n' ~ listed(tools)) -}}
  {%- set chat.offered = true -%}
{%- endif -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' and loop.first -%}
    {%- set own = message.tools if message.tools is defined else ([] if chat.offered else tools) -%}
    {{- turn('system', '', message['content'] ~ (('\\n' ~ listed(own)) if own else '')) -}}
  {%- elif message['role'] == 'user' and not chat.waiting -%}
    {{- turn('user', '', message['content']) -}}
    {%- set chat.waiting = true -%}
  {%- elif message['role'] == 'assistant' -%}
    {%- set calls = message.tool_calls if message.tool_calls is defined and message.tool_calls else [] -%}
    {%- if message['content'] or not calls -%}
      {{- turn('assistant', message.metadata if message.metadata is defined else '', message['content'] or '') -}}
    {%- endif -%}
    {%- for call in calls -%}
      {%- set function = call.function if call.function is defined else call -%}
      {%- if function.arguments is not mapping -%}
        {{- raise_exception('The arguments of a call are an object') -}}
      {%- endif -%}
      {%- set given = namespace(texts=[]) -%}
      {%- for key, value in function.arguments.items() -%}
        {%- set given.texts = given.texts + [key ~ '=' ~ ('%r' | format(value))] -%}
      {%- endfor -%}
      {{- turn('assistant', function.name, '```python\\ntool_call(' ~ (given.texts | join(', ')) ~ ')\\n```') -}}
    {%- endfor -%}
    {%- if loop.last -%}
      {{- '</s>' -}}
    {%- endif -%}
    {%- set chat.waiting = false -%}
  {%- elif message['role'] in ('tool', 'observation', 'function') and not loop.first -%}
    {{- turn('observation', '', message['content']) -}}
    {%- set chat.waiting = false -%}
  {%- else -%}
    {{- raise_exception('A chat is at most one system turn, then user and assistant in turn, and results of tools') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and messages[-1]['role'] != 'assistant' -%}
  {{- '<|assistant|>' -}}
{%- endif -%}
"""


def recognises(config: Mapping[str, Any], folder: Path) -> bool:
    """Whether a published folder is of this family (or of a variant that ``refuse`` refuses)."""
    return config.get("model_type") == "chatglm" and chatglm2.has_roles(config, folder)


def refuse(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse variants that GLM would load but compute wrongly, among them GLM-4-9B, which has these roles too.

    Raises:
        ConfigError: the message has the difference.
    """
    chatglm2.refuse_layout(config, folder)
    ratio = config.get("rope_ratio", 1)
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or ratio <= 0:
        raise ConfigError(f"{folder}: config.json has rope_ratio={ratio!r}, where a positive number is required")


def native_config(config: Mapping[str, Any]) -> Native:
    """The arguments of ``GlmConfig``.

    Raises:
        ConfigError: a size is missing.
    """
    scaled = {"rope_theta": 10000.0 * config.get("rope_ratio", 1)}
    native = chatglm2.native_config(config)
    return native | {"rope_parameters": native["rope_parameters"] | scaled}


def rules(config: Mapping[str, Any]) -> dict[str, Rule]:
    """Every published tensor that is used, and the native tensors that it becomes: those of ChatGLM2.

    Raises:
        ConfigError: a size is missing.
    """
    return chatglm2.rules(config)


def tokenizer(folder: Path, config: Mapping[str, Any]) -> "PreTrainedTokenizerFast":
    """The fast tokenizer: that of ChatGLM2 with tokens for roles, which no text of a user becomes.

    Raises:
        ConfigError: ``tokenizer.model`` is missing or of another kind, or has more tokens than the model.
    """
    return chatglm2.make_tokenizer(
        folder, config, SPECIALS, CHAT_TEMPLATE, answer_ends=list(ANSWER_ENDS), answer_begins="\n"
    )
