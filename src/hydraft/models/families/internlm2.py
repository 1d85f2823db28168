"""InternLM2 and InternLM2.5 as transformers' Llama: config, tensors, tokenizer and chat template.

Both (``internlm/internlm2-chat-7b``, ``internlm/internlm2_5-7b-chat``, …: config.json, modeling_internlm2.py,
tokenization_internlm2_fast.py; Cai et al. 2024, arXiv:2403.17297) are Llama's decoder with other names. Query, key and value
are one matrix, group by group: the queries that share a key, then the key, then the value.

Shapes: V vocabulary, H hidden size, F feed-forward size, G key-value groups, D head size.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydraft.errors import ConfigError
from hydraft.models.families.base import Native
from hydraft.models.families.layout import Rule, epsilon, integer, stacked, whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAME = "internlm2"
MODELS: tuple[str, ...] = ("InternLM2", "InternLM2.5")
REVERSIBLE = True
DROPPED = re.compile(r"model\.layers\.\d+\.attention\.rotary_emb\.inv_freq")
"""Published tensors that the native model does not have: rotary frequencies are computed."""

SPECIALS = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>")
"""The last ids of the vocabulary, in this order: 92538 to 92543. In ``tokenizer.model`` their pieces are unused tokens."""

ANSWER_ENDS = ("<|im_end|>",)
"""What ends an answer besides ``</s>`` (``eos_token_id`` of generation_config.json)."""

LORA_NAMES: dict[str, tuple[str, ...]] = {
    "wqkv": ("q_proj", "k_proj", "v_proj"),
    "wo": ("o_proj",),
    "w1": ("gate_proj",),
    "w3": ("up_proj",),
    "w2": ("down_proj",),
}
"""LoRA target names of the published layout, and the native layers that hold the same weights."""

CONSTANTS: Native = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
"""What is the same in every native config."""


def _architecture(base: float, factor: float) -> Native:
    """A version's rotary positions, by its config.json: beyond the context their base grows (dynamic NTK)."""
    return CONSTANTS | {
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": base, "factor": factor},
    }


ARCHITECTURES: dict[str, Native] = {
    "internlm2": _architecture(1000000.0, 2.0),
    "internlm2-20b": _architecture(1000000.0, 3.0),
    "internlm2.5-20b": _architecture(50000000.0, 2.5),
}
"""What all sizes share, by the ``architecture`` of conf/model."""

CHAT_TEMPLATE = """\
{#- The chat format of https://github.com/InternLM/InternLM, chat/chat_format.md: tools are a system turn of their own, a call is
an object after the answer's text, and its result a turn of the environment. -#}
{{- bos_token -}}
{%- if tools -%}
  {%- set bare = namespace(tools=[]) -%}
  {%- for tool in tools -%}
    {%- set bare.tools = bare.tools + [tool.function if tool.function is defined else tool] -%}
  {%- endfor -%}
{%- endif -%}
{%- if tools and messages[0]['role'] != 'system' -%}
  {{- '<|im_start|>system name=<|plugin|>\\n' ~ (bare.tools | tojson(indent=4)) ~ '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- if message['role'] in ('tool', 'function', 'environment') -%}
    {{- '<|im_start|>environment name=<|plugin|>\\n' ~ message['content'] ~ '<|im_end|>\\n' -}}
  {%- else -%}
    {{- '<|im_start|>' ~ message['role'] ~ '\\n' ~ (message['content'] or '') -}}
    {%- for call in message.tool_calls if message.tool_calls is defined and message.tool_calls -%}
      {%- set function = call.function if call.function is defined else call -%}
      {{- '<|action_start|><|plugin|>\\n' -}}
      {{- {'name': function.name, 'parameters': function.arguments} | tojson -}}
      {{- '<|action_end|>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
    {%- if tools and loop.first and message['role'] == 'system' -%}
      {{- '<|im_start|>system name=<|plugin|>\\n' ~ (bare.tools | tojson(indent=4)) ~ '<|im_end|>\\n' -}}
    {%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def recognises(config: Mapping[str, Any], folder: Path) -> bool:
    """Whether a published folder is of this family (or of a variant that ``refuse`` refuses)."""
    return config.get("model_type") in ("internlm2", "internlm")


def refuse(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse variants that Llama would load but compute wrongly.

    Raises:
        ConfigError: the message has the difference.
    """
    if config.get("architectures") not in (None, ["InternLM2ForCausalLM"]):
        raise ConfigError(
            f"{folder}: config.json has architectures={config['architectures']}: only InternLM2ForCausalLM is converted "
            "(not the first InternLM, and no reward or image models)"
        )
    unsupported = {
        "hidden_act": ("silu", "InternLM2 has silu"),
        "tie_word_embeddings": (False, "its head has its own weights in the published layout"),
        "quantization_config": ({}, "its weights are quantised: convert the 16-bit checkpoint, and set quant= later"),
        "rotary": (
            None,
            "an early revision, whose rotary positions are described in another way: download the current one",
        ),
    }
    for key, (expected, reason) in unsupported.items():
        value = config.get(key)
        if value is not None and value != expected:
            raise ConfigError(f"{folder}: config.json has {key}={value}: {reason}")
    _rotary(config)


def _rotary(config: Mapping[str, Any]) -> Native:
    """The rotary positions: plain, linear or dynamic as in modeling_internlm2.py, which are those of Llama.

    Raises:
        ConfigError: they are of another kind, or a number is missing.
    """
    scaling, base = config.get("rope_scaling") or {}, config.get("rope_theta", 10000)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    factor = scaling.get("factor", 1.0)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (base, factor))
    if kind not in ("default", "linear", "dynamic") or not numbers or base <= 0 or factor < 1:
        raise ConfigError(
            f"config.json: rope_theta={base!r} with rope_scaling={scaling!r}, where a base and none, linear or dynamic is required"
        )
    made = {"rope_type": kind, "rope_theta": float(base)}
    return made if kind == "default" else made | {"factor": float(factor)}


def native_config(config: Mapping[str, Any]) -> Native:
    """The arguments of ``LlamaConfig``.

    Raises:
        ConfigError: a size is missing, or the rotary positions are of another kind.
    """
    heads = integer(config, "num_attention_heads")
    groups = integer(config, "num_key_value_heads") if config.get("num_key_value_heads") is not None else heads
    hidden = integer(config, "hidden_size")
    if hidden % heads or heads % groups:
        raise ConfigError(f"config.json: {heads} heads and {groups} groups do not divide hidden_size={hidden}")
    return CONSTANTS | {
        "vocab_size": integer(config, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": integer(config, "intermediate_size"),
        "num_hidden_layers": integer(config, "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": hidden // heads,
        "max_position_embeddings": integer(config, "max_position_embeddings"),
        "rms_norm_eps": epsilon(config, "rms_norm_eps"),
        "attention_bias": bool(config.get("bias", True)),
        "rope_parameters": _rotary(config),
    }


def rules(config: Mapping[str, Any]) -> dict[str, Rule]:
    """Every published tensor that is used, and the native tensors that it becomes.

    ``wqkv`` ((heads + 2 G) D, H) is G blocks: heads / G queries, a key and a value each.

    Raises:
        ConfigError: a size is missing.
    """
    native = native_config(config)
    vocabulary, hidden, inner = native["vocab_size"], native["hidden_size"], native["intermediate_size"]
    groups, head = native["num_key_value_heads"], native["head_dim"]
    heights = (native["num_attention_heads"] // groups * head, head, head)
    found = {
        "model.tok_embeddings.weight": whole("model.embed_tokens.weight", vocabulary, hidden),
        "model.norm.weight": whole("model.norm.weight", hidden),
        "output.weight": whole("lm_head.weight", vocabulary, hidden),
    }
    for index in range(native["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        weights, biases = (
            tuple(f"{layer}.self_attn.{kind}_proj.{what}" for kind in "qkv") for what in ("weight", "bias")
        )
        found[f"{layer}.attention.wqkv.weight"] = stacked(weights, heights, hidden, groups=groups)
        if native["attention_bias"]:
            found[f"{layer}.attention.wqkv.bias"] = stacked(biases, heights, groups=groups)
            found[f"{layer}.attention.wo.bias"] = whole(f"{layer}.self_attn.o_proj.bias", hidden)
        for old, new, *shape in (
            ("attention_norm", "input_layernorm", hidden),
            ("ffn_norm", "post_attention_layernorm", hidden),
            ("attention.wo", "self_attn.o_proj", hidden, hidden),
            ("feed_forward.w1", "mlp.gate_proj", inner, hidden),
            ("feed_forward.w3", "mlp.up_proj", inner, hidden),
            ("feed_forward.w2", "mlp.down_proj", hidden, inner),
        ):
            found[f"{layer}.{old}.weight"] = whole(f"{layer}.{new}.weight", *map(int, shape))
    return found


def tokenizer(folder: Path, config: Mapping[str, Any]) -> "PreTrainedTokenizerFast":
    """The fast tokenizer: every sequence starts with ``<s>``, padding is on the left, pad is ``</s>``.

    The last six pieces have the names of the special tokens. Base models have them too, as unused tokens.

    Raises:
        ConfigError: ``tokenizer.model`` is missing or of another kind, or the checkpoint has other special tokens.
    """
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    from hydraft.models.families import sentencepiece

    model = sentencepiece.read_llama(folder, integer(config, "vocab_size"))
    pieces = [piece.piece for piece in model.pieces]
    first = len(pieces) - len(SPECIALS)
    for piece, name in zip(model.pieces[first:], SPECIALS, strict=True):
        piece.piece, piece.type = name, sentencepiece.CONTROL
    _check_added(folder, pieces, [piece.piece for piece in model.pieces], integer(config, "vocab_size"))
    fast = sentencepiece.build(model)
    fast.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (*pieces[:3], *SPECIALS)])
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        extra_special_tokens=list(SPECIALS),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=integer(config, "max_position_embeddings"),
        model_input_names=["input_ids", "attention_mask"],
        chat_template=CHAT_TEMPLATE,
        answer_ends=list(ANSWER_ENDS),
    )


def _check_added(folder: Path, published: list[str], ours: list[str], rows: int) -> None:
    """Refuse a checkpoint whose tokenizer_config.json has other tokens, for rows of its embedding, than these pieces.

    Raises:
        ConfigError: the message has the token.
    """
    try:
        added = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["added_tokens_decoder"]
        named = {int(number): token["content"] for number, token in added.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # it has none, or none that are described so
    for number, name in named.items():
        if number < rows and (number >= len(ours) or name not in (published[number], ours[number])):
            raise ConfigError(
                f"{folder}: tokenizer_config.json has {name} as token {number}, which the published tokenizer does not have"
            )
