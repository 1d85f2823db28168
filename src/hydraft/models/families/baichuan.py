"""Baichuan and Baichuan2, 7B as transformers' Llama and 13B as our ``baichuan_alibi``: config, tensors, tokenizer, chat template.

All (``baichuan-inc/Baichuan-7B``, ``Baichuan-13B-Base``/``-Chat``, ``Baichuan2-7B-Base``/``-Chat`` and
``Baichuan2-13B-Base``/``-Chat``: config.json, modeling_baichuan.py, generation_utils.py; Yang et al. 2023, arXiv:2309.10305) are
Llama's decoder with query, key and value in one matrix. The 13B models have ALiBi instead of rotary positions, which no
architecture of transformers has beside RMSNorm and SwiGLU. Baichuan2 also scales each row of its head to length 1 (NormHead);
here the rows are scaled once, in the conversion, which is equivalent unless the head is trained.

Shapes: V vocabulary, H hidden size, F feed-forward size.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydraft.errors import ConfigError
from hydraft.models.families.base import Native
from hydraft.models.families.layout import Rule, epsilon, integer, stacked, whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAME = "baichuan"
MODELS: tuple[str, ...] = ("Baichuan-7B", "Baichuan-13B", "Baichuan2-7B", "Baichuan2-13B")
REVERSIBLE = True
"""With the published head: the lengths of its rows are not kept, and the published code scales the rows again."""
DROPPED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""Published tensors that the native model does not have: rotary frequencies are computed."""

USER, ASSISTANT = 195, 196
"""The ids that open a turn (``user_token_id``, ``assistant_token_id`` of generation_config.json) in Baichuan2 and Baichuan-13B."""

VOCABULARIES = {64000: False, 125696: True}
"""The published vocabulary sizes, and whether they are Baichuan2's."""

WIDTHS = {4096: False, 5120: True}
"""The published hidden sizes, and whether they are 13B's."""

LORA_NAMES: dict[str, tuple[str, ...]] = {"W_pack": ("q_proj", "k_proj", "v_proj")}
"""LoRA target names of the published layout, and the native layers that hold the same weights."""

CONSTANTS: Native = {
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""What is the same in every native config."""

ROTARY: Native = CONSTANTS | {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
"""What is the same in the native config of every 7B."""

ALIBI: Native = CONSTANTS | {
    "model_type": "baichuan_alibi",
    "architectures": ["BaichuanAlibiForCausalLM"],
    "auto_map": {
        "AutoConfig": "modeling_baichuan_alibi.BaichuanAlibiConfig",
        "AutoModelForCausalLM": "modeling_baichuan_alibi.BaichuanAlibiForCausalLM",
    },
}
"""What is the same in the native config of every 13B (``models/architectures``)."""

ARCHITECTURES: dict[str, Native] = {
    "baichuan2": ROTARY | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-6},
    "baichuan2-13b": ALIBI | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-6},
}
"""What all sizes share, by the ``architecture`` of conf/model."""

CHAT_TEMPLATE = """\
{#- build_chat_input of generation_utils.py: the system's text bare, then a token ahead of each turn. Nothing closes a
turn but the next one's token; the published training ends a whole chat with </s>. -#}
{%- set chat = namespace(answered=true) -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' and loop.first -%}
    {{- message['content'] -}}
  {%- elif message['role'] == 'user' and chat.answered -%}
    {{- 'USER' ~ message['content'] -}}
    {%- set chat.answered = false -%}
  {%- elif message['role'] == 'assistant' and not chat.answered -%}
    {{- 'ASSISTANT' ~ message['content'] -}}
    {%- if loop.last -%}
      {{- '</s>' -}}
    {%- endif -%}
    {%- set chat.answered = true -%}
  {%- else -%}
    {{- raise_exception('A chat is at most one system turn, then user and assistant in turn') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not chat.answered -%}
  {{- 'ASSISTANT' -}}
{%- endif -%}
"""


def recognises(config: Mapping[str, Any], folder: Path) -> bool:
    """Whether a published folder is of this family (or of a variant that ``refuse`` refuses)."""
    return config.get("model_type") == "baichuan"


def refuse(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse variants that the native models would load but compute wrongly.

    Raises:
        ConfigError: the message has the difference.
    """
    unsupported = {
        "hidden_act": ("silu", "Baichuan has silu"),
        "tie_word_embeddings": (False, "its head has its own weights in the published layout"),
        "quantization_config": ({}, "its weights are quantised: convert the 16-bit checkpoint, and set quant= later"),
        "rope_scaling": ({}, "its rotary positions are scaled, those of Baichuan are not"),
    }
    for key, (expected, reason) in unsupported.items():
        value = config.get(key)
        if value is not None and value != expected:
            raise ConfigError(f"{folder}: config.json has {key}={value}: {reason}")
    _is_baichuan2(config)


def _is_13b(config: Mapping[str, Any]) -> bool:
    """Whether this model has ALiBi: by its width, and for widths that were not published by whether it has a table of rotary
    positions, whose length is ``max_position_embeddings``."""
    return WIDTHS.get(config.get("hidden_size", 0), "max_position_embeddings" not in config)


def _is_baichuan2(config: Mapping[str, Any]) -> bool:
    """Whether this is Baichuan2, and its head normalised.

    The published class names differ in the case of one letter, but Baichuan-13B has that of Baichuan2. There the
    vocabulary decides, which fine-tuning may have extended, or ``z_loss_weight``, which only Baichuan2's config has.
    """
    architecture, vocabulary = (config.get("architectures") or [None])[0], config.get("vocab_size", 0)
    if architecture not in ("BaiChuanForCausalLM", "BaichuanForCausalLM"):
        raise ConfigError(
            f"config.json: architectures is {config.get('architectures')}; BaiChuanForCausalLM (Baichuan-7B) or "
            "BaichuanForCausalLM (the others) shows whether the head is normalised"
        )
    second = architecture == "BaichuanForCausalLM"
    if second and _is_13b(config):
        second = VOCABULARIES.get(vocabulary, "z_loss_weight" in config or vocabulary > max(VOCABULARIES))
        if not second and vocabulary not in VOCABULARIES:
            raise ConfigError(
                f"config.json: vocab_size={vocabulary} is neither Baichuan-13B's (64000) nor Baichuan2-13B's (125696), so "
                'whether the head is normalised is not known: write "architectures": ["BaiChuanForCausalLM"] in it for '
                'Baichuan-13B, or "z_loss_weight": 0 for Baichuan2-13B'
            )
    if VOCABULARIES.get(vocabulary, second) is not second:
        raise ConfigError(f"config.json: {architecture} with vocab_size={vocabulary} is not a published model")
    return bool(second)


def _positions(config: Mapping[str, Any]) -> int:
    """The longest text that the model was trained on."""
    return integer(config, "model_max_length" if _is_13b(config) else "max_position_embeddings")


def native_config(config: Mapping[str, Any]) -> Native:
    """The arguments of ``LlamaConfig`` or ``BaichuanAlibiConfig``.

    Raises:
        ConfigError: a size is missing.
    """
    heads = integer(config, "num_attention_heads")
    return (ALIBI if _is_13b(config) else ROTARY) | {
        "vocab_size": integer(config, "vocab_size"),
        "hidden_size": integer(config, "hidden_size"),
        "intermediate_size": integer(config, "intermediate_size"),
        "num_hidden_layers": integer(config, "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": integer(config, "hidden_size") // heads,
        "max_position_embeddings": _positions(config),
        "rms_norm_eps": epsilon(config, "rms_norm_eps"),
    }


def rules(config: Mapping[str, Any]) -> dict[str, Rule]:
    """Every published tensor that is used, and the native tensors that it becomes.

    ``W_pack`` (3 H, H) is all of the query, then all of the key, then all of the value; the other names are Llama's.

    Raises:
        ConfigError: a size is missing, or the config does not show whether this is Baichuan2.
    """
    native = native_config(config)
    vocabulary, hidden, inner = native["vocab_size"], native["hidden_size"], native["intermediate_size"]
    found = {
        "model.embed_tokens.weight": whole("model.embed_tokens.weight", vocabulary, hidden),
        "model.norm.weight": whole("model.norm.weight", hidden),
    }
    head = whole("lm_head.weight", vocabulary, hidden)
    found["lm_head.weight"] = replace(head, parts=(replace(head.parts[0], unit_rows=_is_baichuan2(config)),))
    for index in range(native["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        names = tuple(f"{layer}.self_attn.{kind}_proj.weight" for kind in "qkv")
        found[f"{layer}.self_attn.W_pack.weight"] = stacked(names, (hidden, hidden, hidden), hidden)
        for name, shape in {
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            found[f"{layer}.{name}.weight"] = whole(f"{layer}.{name}.weight", *shape)
    return found


def tokenizer(folder: Path, config: Mapping[str, Any]) -> "PreTrainedTokenizerFast":
    """The fast tokenizer: no token is added at either end, padding is on the left, pad is ``<unk>``.

    All but Baichuan-7B, a base model without a chat format, have the chat template. Their two turn tokens are special, so user
    text cannot start a turn; the published tokenizer encodes ``<reserved_106>`` (``<reserved_102>`` in Baichuan-13B) in a text as
    195. Other user-defined pieces are found in text as published.

    Raises:
        ConfigError: ``tokenizer.model`` is missing or of another kind, or has more tokens than the model.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    from hydraft.models.families import sentencepiece

    model = sentencepiece.read_llama(folder, integer(config, "vocab_size"))
    pieces = [piece.piece for piece in model.pieces]
    fast = sentencepiece.build(model)
    template, turns = None, []
    if _is_baichuan2(config) or _is_13b(config):
        if not all(model.pieces[turn].type == sentencepiece.USER_DEFINED for turn in (USER, ASSISTANT)):
            raise ConfigError(f"{folder}: tokenizer.model has no turn tokens at {USER} and {ASSISTANT}")
        turns = [pieces[USER], pieces[ASSISTANT]]
        template = CHAT_TEMPLATE.replace("USER", pieces[USER]).replace("ASSISTANT", pieces[ASSISTANT])
    fast.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (*pieces[:3], *turns)])
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        extra_special_tokens=turns,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=_positions(config),
        model_input_names=["input_ids", "attention_mask"],
        chat_template=template,
    )
