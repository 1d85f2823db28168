"""Baichuan-7B and Baichuan2-7B as transformers' Llama: config, tensors, tokenizer and chat template.

Both (``baichuan-inc/Baichuan-7B`` and ``Baichuan2-7B-Base``/``-Chat``: config.json, modeling_baichuan.py,
generation_utils.py; Yang et al. 2023, arXiv:2309.10305) are Llama's decoder with query, key and value in one matrix.
Baichuan2 also scales each row of its head to length 1 (NormHead); here the rows are
scaled once, in the conversion, which is equivalent unless the head is trained.

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
MODELS: tuple[str, ...] = ("Baichuan-7B", "Baichuan2-7B")
REVERSIBLE = False
"""The lengths of the published head's rows are not kept."""
DROPPED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
"""Published tensors that the native model does not have: rotary frequencies are computed."""

USER, ASSISTANT = 195, 196
"""The ids that open a turn in Baichuan2 (``user_token_id``, ``assistant_token_id`` of its generation_config.json)."""

VOCABULARIES = {64000: False, 125696: True}
"""The published vocabulary sizes, and whether they are Baichuan2's."""

LORA_NAMES: dict[str, tuple[str, ...]] = {"W_pack": ("q_proj", "k_proj", "v_proj")}
"""LoRA target names of the published layout, and the native layers that hold the same weights."""

CONSTANTS: Native = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
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

ARCHITECTURES: dict[str, Native] = {"baichuan2": CONSTANTS | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-6}}
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
    """Refuse variants that Llama would load but compute wrongly.

    Raises:
        ConfigError: the message has the difference.
    """
    # The 13B models have no rotary positions, and so no table of them: their config has model_max_length only.
    if "max_position_embeddings" not in config:
        raise ConfigError(
            f"{folder}: Baichuan 13B uses ALiBi (no max_position_embeddings in config.json), "
            "which no native architecture supports; as Llama it would load and generate nonsense"
        )
    unsupported = {
        "hidden_act": ("silu", "Baichuan 7B has silu"),
        "tie_word_embeddings": (False, "its head has its own weights in the published layout"),
        "quantization_config": ({}, "its weights are quantised: convert the 16-bit checkpoint, and set quant= later"),
        "rope_scaling": ({}, "its rotary positions are scaled, those of Baichuan 7B are not"),
    }
    for key, (expected, reason) in unsupported.items():
        value = config.get(key)
        if value is not None and value != expected:
            raise ConfigError(f"{folder}: config.json has {key}={value}: {reason}")
    _is_baichuan2(config)


def _is_baichuan2(config: Mapping[str, Any]) -> bool:
    """Whether this is Baichuan2. Only the published class names, which differ in the case of one letter, identify a config
    without weights."""
    architecture = (config.get("architectures") or [None])[0]
    if architecture not in ("BaiChuanForCausalLM", "BaichuanForCausalLM"):
        raise ConfigError(
            f"config.json: architectures is {config.get('architectures')}; BaiChuanForCausalLM (Baichuan-7B) or "
            "BaichuanForCausalLM (Baichuan2-7B) shows whether the head is normalised"
        )
    second = architecture == "BaichuanForCausalLM"
    if VOCABULARIES.get(config.get("vocab_size", 0), second) is not second:
        raise ConfigError(
            f"config.json: {architecture} with vocab_size={config['vocab_size']} is not a published model"
        )
    return bool(second)


def native_config(config: Mapping[str, Any]) -> Native:
    """The arguments of ``LlamaConfig``.

    Raises:
        ConfigError: a size is missing.
    """
    heads = integer(config, "num_attention_heads")
    return CONSTANTS | {
        "vocab_size": integer(config, "vocab_size"),
        "hidden_size": integer(config, "hidden_size"),
        "intermediate_size": integer(config, "intermediate_size"),
        "num_hidden_layers": integer(config, "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": integer(config, "hidden_size") // heads,
        "max_position_embeddings": integer(config, "max_position_embeddings"),
        "rms_norm_eps": epsilon(config, "rms_norm_eps"),
    }


def rules(config: Mapping[str, Any]) -> dict[str, Rule]:
    """Every published tensor that is used, and the native tensors that it becomes.

    ``W_pack`` (3 H, H) is all of the query, then all of the key, then all of the value; the other names are Llama's.

    Raises:
        ConfigError: a size is missing, or the config shows neither Baichuan-7B nor Baichuan2-7B.
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

    Baichuan2's has the chat template, and its two turn tokens are special, so user text cannot start a turn; the published
    tokenizer encodes ``<reserved_106>`` in a text as 195. Other user-defined pieces are found in text as published.
    Baichuan-7B is a base model without a chat format.

    Raises:
        ConfigError: ``tokenizer.model`` is missing or of another kind, or has more tokens than the model.
    """
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    from hydraft.models.families import sentencepiece

    model = sentencepiece.read(folder / "tokenizer.model")
    pieces = [piece.piece for piece in model.pieces]
    if pieces[:3] != ["<unk>", "<s>", "</s>"] or len(pieces) > integer(config, "vocab_size"):
        raise ConfigError(f"{folder}: tokenizer.model ({len(pieces)} tokens, first {pieces[:3]}) is not this model's")
    fast = sentencepiece.build(model)
    template, turns = None, []
    if _is_baichuan2(config):
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
        model_max_length=integer(config, "max_position_embeddings"),
        model_input_names=["input_ids", "attention_mask"],
        chat_template=template,
    )
