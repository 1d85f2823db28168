"""ChatGLM2-6B as transformers' GLM: config, tensors, tokenizer and chat template.

The published model (``THUDM/chatglm2-6b``: config.json, modeling_chatglm.py, tokenization_chatglm.py) is the
decoder of GLM (Du et al. 2022, arXiv:2103.10360) with multi-query attention (Shazeer 2019, arXiv:1911.02150), RMSNorm,
SwiGLU, and rotary positions on the first half of each head, in interleaved pairs: what ``GlmForCausalLM`` computes.

Shapes: V padded vocabulary, H hidden size, F feed-forward size, Q heads · head size, K key-value groups · head size.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydraft.errors import ConfigError
from hydraft.models.families.base import Native
from hydraft.models.families.layout import Rule, epsilon, integer, stacked, whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAME = "chatglm2"
MODELS: tuple[str, ...] = ("ChatGLM2-6B",)
REVERSIBLE = True
DROPPED = re.compile(r"transformer\.rotary_pos_emb\.inv_freq")
"""Published tensors that the native model does not have: rotary frequencies are computed."""

SPECIALS = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
"""The ids after SentencePiece's own, in this order. The last two are published as ``sop`` and ``eop``; bare, they would
be found inside words such as "philosophy" and "people"."""

GLM4_VOCABULARY = 151552
"""``padded_vocab_size`` of GLM-4-9B, whose remote code has the same ``model_type``."""

LORA_NAMES: dict[str, tuple[str, ...]] = {
    "query_key_value": ("q_proj", "k_proj", "v_proj"),
    "dense": ("o_proj",),
    "dense_h_to_4h": ("gate_up_proj",),
    "dense_4h_to_h": ("down_proj",),
}
"""LoRA target names of the published layout, and the native layers that hold the same weights."""

CONSTANTS: Native = {
    "model_type": "glm",
    "architectures": ["GlmForCausalLM"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""What is the same in every native config. The defaults of GlmConfig are those of GLM-4."""

ARCHITECTURES: dict[str, Native] = {
    "chatglm2": CONSTANTS | {"max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "attention_bias": True},
}
"""What all sizes share, by the ``architecture`` of conf/model."""

CHAT_TEMPLATE = """\
{#- build_prompt of tokenization_chatglm.py: rounds are counted from 1. The last answer begins with a space because the
published training encodes it apart from the prompt, and SentencePiece puts a space ahead of whatever it encodes; only it
is closed by </s>. The format has no system turn: its text stands ahead of the first question. -#}
{{- '[gMASK]<sop>' -}}
{%- set chat = namespace(round=0, system='', answered=true) -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' and loop.first -%}
    {%- set chat.system = message['content'] + '\\n' -%}
  {%- elif message['role'] == 'user' and chat.answered -%}
    {%- set chat.round = chat.round + 1 -%}
    {{- '[Round ' ~ chat.round ~ ']\\n\\n问：' ~ chat.system ~ message['content'] ~ '\\n\\n' -}}
    {%- set chat.system = '' -%}
    {%- set chat.answered = false -%}
  {%- elif message['role'] == 'assistant' and not chat.answered -%}
    {{- '答：' -}}
    {%- if loop.last -%}
      {{- (' ' if message['content']) ~ message['content'] ~ '</s>' -}}
    {%- else -%}
      {{- message['content'] ~ '\\n\\n' -}}
    {%- endif -%}
    {%- set chat.answered = true -%}
  {%- else -%}
    {{- raise_exception('A chat is at most one system turn, then user and assistant in turn') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not chat.answered -%}
  {{- '答：' -}}
{%- endif -%}
"""


def recognises(config: Mapping[str, Any], folder: Path) -> bool:
    """Whether a published folder is of this family (or of a variant that ``refuse`` refuses)."""
    return config.get("model_type") == "chatglm" and not has_roles(config, folder)


def has_roles(config: Mapping[str, Any], folder: Path) -> bool:
    """Whether a folder of a ``chatglm`` model has the role tokens of ChatGLM3: the configs of both generations are alike.

    The code of the published tokenizer has them, and so have the files of a tokenizer that was saved again.
    """
    files = (folder / name for name in ("tokenization_chatglm.py", "tokenizer_config.json", "special_tokens_map.json"))
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file())
    return any("<|assistant|>" in text for text in texts) or "chatglm3" in str(config.get("_name_or_path", "")).lower()


def refuse(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse variants that GLM would load but compute wrongly.

    Raises:
        ConfigError: the message has the difference.
    """
    refuse_layout(config, folder)
    if config.get("rope_ratio") not in (None, 1):
        raise ConfigError(
            f"{folder}: config.json has rope_ratio={config['rope_ratio']}: its rotary positions are scaled (the 32k variant)"
        )


def refuse_layout(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse variants of both generations.

    Raises:
        ConfigError: the message has the difference.
    """
    if "padded_vocab_size" not in config:
        raise ConfigError(f"{folder}: the first ChatGLM-6B (2-D positions, LayerNorm) has no native architecture")
    if config["padded_vocab_size"] == GLM4_VOCABULARY:
        raise ConfigError(
            f"{folder}: this is GLM-4-9B in the layout of its remote code; it is also published for transformers, "
            "without conversion: model=auto model.path=THUDM/glm-4-9b-chat-hf (or glm-4-9b-hf, glm-4-9b-chat-1m-hf)"
        )
    unsupported = {
        "quantization_bit": (0, "its weights are quantised: convert the fp16 checkpoint, and set quant= in training"),
        "pre_seq_len": (0, "it has a P-tuning prefix, which GLM does not support"),
        "multi_query_attention": (True, "GLM's mapping needs key-value groups"),
        "rmsnorm": (True, "it has LayerNorm, and GLM has RMSNorm"),
        "post_layer_norm": (True, "GLM always has a final norm"),
        "add_bias_linear": (False, "GLM has no biases outside query, key and value"),
        "apply_residual_connection_post_layernorm": (False, "GLM's residual is taken before the norm"),
        "interleaved_qkv": (False, "GLM's query, key and value are blocks"),
        "tie_word_embeddings": (False, "its head has its own weights in the published layout"),
    }
    for key, (expected, reason) in unsupported.items():
        value = config.get(key)
        if value is not None and value != expected:
            raise ConfigError(f"{folder}: config.json has {key}={value}: {reason}")


def native_config(config: Mapping[str, Any]) -> Native:
    """The arguments of ``GlmConfig``.

    Raises:
        ConfigError: a size is missing.
    """
    return CONSTANTS | {
        "vocab_size": integer(config, "padded_vocab_size"),
        "hidden_size": integer(config, "hidden_size"),
        "intermediate_size": integer(config, "ffn_hidden_size"),
        "num_hidden_layers": integer(config, "num_layers"),
        "num_attention_heads": integer(config, "num_attention_heads"),
        "num_key_value_heads": integer(config, "multi_query_group_num"),
        "head_dim": integer(config, "kv_channels"),
        "max_position_embeddings": integer(config, "seq_length"),
        "rms_norm_eps": epsilon(config, "layernorm_epsilon"),
        "attention_bias": bool(config.get("add_qkv_bias", False)),
        "attention_dropout": float(config.get("attention_dropout", 0.0)),
    }


def rules(config: Mapping[str, Any]) -> dict[str, Rule]:
    """Every published tensor that is used, and the native tensors that it becomes.

    Query, key and value are published as one matrix (Q + K + K, H): all query heads, then the keys, then the values.
    ``dense_h_to_4h`` (2 F, H) has the gate first, as ``gate_up_proj`` has.

    Raises:
        ConfigError: a size is missing.
    """
    native = native_config(config)
    vocabulary, hidden, inner = native["vocab_size"], native["hidden_size"], native["intermediate_size"]
    query = native["num_attention_heads"] * native["head_dim"]
    key = native["num_key_value_heads"] * native["head_dim"]
    found = {
        "transformer.embedding.word_embeddings.weight": whole("model.embed_tokens.weight", vocabulary, hidden),
        "transformer.encoder.final_layernorm.weight": whole("model.norm.weight", hidden),
        "transformer.output_layer.weight": whole("lm_head.weight", vocabulary, hidden),
    }
    for layer in range(native["num_hidden_layers"]):
        old, new = f"transformer.encoder.layers.{layer}", f"model.layers.{layer}"
        heads = (query, key, key)
        weights, biases = (
            tuple(f"{new}.self_attn.{kind}_proj.{what}" for kind in "qkv") for what in ("weight", "bias")
        )
        found[f"{old}.self_attention.query_key_value.weight"] = stacked(weights, heads, hidden)
        if native["attention_bias"]:
            found[f"{old}.self_attention.query_key_value.bias"] = stacked(biases, heads)
        found |= {
            f"{old}.input_layernorm.weight": whole(f"{new}.input_layernorm.weight", hidden),
            f"{old}.post_attention_layernorm.weight": whole(f"{new}.post_attention_layernorm.weight", hidden),
            f"{old}.self_attention.dense.weight": whole(f"{new}.self_attn.o_proj.weight", hidden, query),
            f"{old}.mlp.dense_h_to_4h.weight": whole(f"{new}.mlp.gate_up_proj.weight", 2 * inner, hidden),
            f"{old}.mlp.dense_4h_to_h.weight": whole(f"{new}.mlp.down_proj.weight", hidden, inner),
        }
    return found


def tokenizer(folder: Path, config: Mapping[str, Any]) -> "PreTrainedTokenizerFast":
    """The fast tokenizer: every sequence starts with ``[gMASK]<sop>``, padding is on the left, pad is ``<unk>``.

    User text cannot contain special tokens (``data/special_tokens.py``); the published tokenizer has no names for them.

    Raises:
        ConfigError: ``tokenizer.model`` is missing or of another kind, or has more tokens than the model.
    """
    return make_tokenizer(folder, config, SPECIALS, CHAT_TEMPLATE)


def make_tokenizer(
    folder: Path, config: Mapping[str, Any], specials: tuple[str, ...], template: str, **more: Any
) -> "PreTrainedTokenizerFast":
    """The fast tokenizer of either generation, with its special tokens after SentencePiece's own.

    Raises:
        ConfigError: see ``tokenizer``.
    """
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    from hydraft.models.families import sentencepiece

    model = sentencepiece.read(folder / "tokenizer.model")
    fast = sentencepiece.build(model)
    fast.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in ("<unk>", "</s>", *specials)])
    if fast.get_vocab_size() > integer(config, "padded_vocab_size"):
        raise ConfigError(f"{folder}: tokenizer.model and its special tokens are more than padded_vocab_size")
    expected = {"<unk>": 0, "</s>": 2} | {name: len(model.pieces) + index for index, name in enumerate(specials)}
    ids = {name: fast.token_to_id(name) for name in expected}
    if ids != expected:
        raise ConfigError(f"{folder}: tokenizer.model has its special tokens at {ids}, not at {expected}")
    fast.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A",
        pair="[gMASK] <sop> $A $B </s>",
        special_tokens=[(name, ids[name]) for name in ("[gMASK]", "<sop>", "</s>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        unk_token="<unk>",
        pad_token="<unk>",
        eos_token="</s>",
        extra_special_tokens=list(specials),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=integer(config, "seq_length"),
        model_input_names=["input_ids", "attention_mask"],
        chat_template=template,
        **more,
    )
