"""Whether a model keeps the documents of one row apart: an allow-list of features, read from its config and its modules. No torch.

A layer may have attention through transformers' ``AttentionInterface``, with the options that ``models/attention.py`` has, and modules
that treat each token by itself. Anything else, such as a convolution, a recurrence, or an index over the row, may let a document see
the one before it: then batches are padded.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel

KEYWORDS = frozenset({"dropout", "scaling", "sliding_window", "softcap", "s_aux", "is_causal", "attention_mask", "cu_seq_lens_q",
                      "max_length_q"})  # fmt: skip
"""The options in which an attention call may differ, and which ``models/attention.py`` has."""

IGNORED = frozenset({"position_ids", "output_attentions", "cu_seq_lens_k", "max_length_k"})
"""Options that change nothing about attention within a document."""

LAYER_TYPES = frozenset({"full_attention", "sliding_attention", "attention", "dense", "sparse", "moe", "mlp"})
"""The ``layer_types`` and ``mlp_layer_types`` of a config that keep documents apart."""

MIXERS = re.compile(
    r"^(mamba|ssm|linear_(num|key|value|conv)|conv_|rwkv|wkv|time_mix|index_(topk|head|n_heads)|lru_|lightning)"
)
"""Settings of a config.json that only models with other layers than attention have."""

PATTERNS = ("full_attention_interval", "hybrid_override_pattern", "attn_layer_period", "block_types", "attn_type_list",
            "attention_chunk_size", "state_size", "full_attn_idxs", "linear_attn_config", "hybrid_layer_ids", "time_step_rank")  # fmt: skip
"""The like, which have no common beginning."""

TOKEN_BY_TOKEN = re.compile(
    r"(Conv1D|MLP|Mlp|MoE|Moe|MoEBlock|MoeBlock|MoELayer|MoeLayer|FeedForward|Experts|Router|Gate|Norm|LayerNorm|RMSNorm|L2Norm|Dropout|Linear"
    r"|Linear(4bit|8bitLt)|Identity|Embedding|Embeddings|RotaryEmbedding|ResidualScaling|AltUp|LaurelBlock|ReLU|SiLU|Tanh|GELU\w*|\w*Activation)$"
)
"""Classes of modules that treat each token by itself, by the end of their name; ``Conv1D`` is GPT-2's linear layer."""

ACROSS_TOKENS = re.compile(r"Conv(?!1D$)|Pool|RNN|GRU|LSTM|Mamba|Indexer|Compressor|Delta|Shift|Recurrent|Scan")
"""Classes that do not, inside of one that does by its name."""

CONTAINERS = frozenset({"ModuleList", "ModuleDict", "Sequential", "ParameterList"})

POSITIONS = frozenset({"arange", "cumsum", "roll", "topk"})
"""Calls in an attention's forward pass that count tokens from the beginning of the row, or choose among them."""


def config_reason(native: Mapping[str, Any]) -> str | None:
    """Why a model with this config.json may not keep documents apart; None if nothing in it says so."""
    text = native.get("text_config")
    config = {**native, **text} if isinstance(text, Mapping) else native
    for name in ("layer_types", "layers_block_type"):
        others = sorted(set(config.get(name) or ()) - LAYER_TYPES)
        if others:
            return f"it has {', '.join(others)} layers"
    found = next((name for name, value in config.items() if value and (MIXERS.match(name) or name in PATTERNS)), None)
    if found is not None:
        return f"{found} of its config.json is for layers other than attention"
    if config.get("use_bidirectional_attention") not in (
        None,
        False,
        "vision",
    ):  # tokens of images, which no record has
        return "its attention is not causal"
    return None


def reason(model: "PreTrainedModel") -> str | None:
    """Why a model may not keep the documents of a row apart; None if it does. Its weights are not read, and may be on ``meta``."""
    if found := config_reason(model.config.get_text_config(decoder=True).to_dict()):
        return found
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not take its attention from transformers' AttentionInterface"
    decoder = model.get_decoder()
    if decoder is None or decoder is model or not any(_is_list(module) for module in decoder.children()):
        decoder = model.base_model
    layers = 0
    children: list[tuple[str, Any]] = list(decoder.named_children())
    for name, module in children:
        for part in list(module) if _is_list(module) else [module]:
            is_layer = _is_list(module) and not TOKEN_BY_TOKEN.search(type(part).__name__)
            layers += is_layer
            if found := _layer_reason(part) if is_layer else _across_tokens(name, part):
                return found
    if not layers:
        return f"{type(decoder).__name__} has no list of layers"
    if not _hands_on(_kind(decoder), r"\w+"):
        return f"{type(decoder).__name__} does not hand its options on"
    return None


def _kind(module: Any) -> Any:
    """The class; mypy does not take every class as hashable."""
    return type(module)


def _is_list(module: Any) -> bool:
    return type(module).__name__ == "ModuleList"


def _layer_reason(layer: Any) -> str | None:
    """Why a layer may not keep documents apart."""
    attentions = 0
    for name, module in layer.named_children():
        parts: list[Any] = list(module) if _is_list(module) else [module]
        for part in parts:  # LongCat-Flash has two of each
            call = _attention_call(_kind(part))
            attentions += call is not None
            found = _across_tokens(name, part) if call is None else _attention_reason(part, call)
            if call is not None and not _hands_on(_kind(layer), rf"self\.{name}\b"):
                found = f"{type(layer).__name__} does not hand its options on"
            if found:
                return found
    return None if attentions else f"{type(layer).__name__} has no attention through transformers' AttentionInterface"


def _across_tokens(name: str, module: "Module") -> str | None:
    """Why a module that is no attention may not treat each token by itself."""
    for inner, part in module.named_modules(prefix=name):
        kind = type(part).__name__
        if kind not in CONTAINERS and (
            ACROSS_TOKENS.search(kind) or (part is module and not TOKEN_BY_TOKEN.search(kind))
        ):
            return f"{inner} is a {kind}, which may mix tokens"
    return None


def _attention_reason(module: "Module", call: "_Call") -> str | None:
    """Why an attention may not keep documents apart."""
    kind = type(module).__name__
    if others := sorted(call.keywords - KEYWORDS - IGNORED):
        return f"{kind} has the option {', '.join(others)}"
    if not call.forwards:
        return f"{kind} does not hand its options on"
    if not call.plain_mask:
        return f"{kind} has a mask of its own"
    if call.positions:
        return f"{kind} uses {', '.join(sorted(call.positions))} over the row"
    if not getattr(module, "is_causal", True):
        return f"{kind} is not causal"
    return next((found for name, part in module.named_children() if (found := _across_tokens(name, part))), None)


class _Call(NamedTuple):
    """How a class calls transformers' attention interface."""

    keywords: frozenset[str]
    forwards: bool
    """Whether it hands on the options that it does not know, in which the boundaries of documents are."""
    plain_mask: bool
    """Whether it hands on the mask that it is given."""
    positions: frozenset[str]
    """The calls of ``POSITIONS``."""


@cache
def _forward(kind: Any) -> ast.FunctionDef | None:
    """The source of a class's forward pass; None if there is none."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind.forward)))
    except (OSError, TypeError, SyntaxError):
        return None
    return next((node for node in tree.body if isinstance(node, ast.FunctionDef)), None)


def _calls(kind: Any) -> list[ast.Call]:
    forward = _forward(kind)
    return [] if forward is None else [node for node in ast.walk(forward) if isinstance(node, ast.Call)]


@cache
def _hands_on(kind: Any, callee: str) -> bool:
    """Whether a class's forward pass calls something (a pattern, not a mask's function) with its own further options."""
    forward = _forward(kind)
    options = None if forward is None or forward.args.kwarg is None else forward.args.kwarg.arg
    return any(
        isinstance(keyword.value, ast.Name) and keyword.value.id == options
        for call in _calls(kind)
        if re.match(rf"(?!create_){callee}", ast.unparse(call.func))
        for keyword in call.keywords
        if keyword.arg is None
    )


@cache
def _attention_call(kind: Any) -> _Call | None:
    """From the source of the class's forward pass; None if it does not call the interface."""
    calls = _calls(kind)
    found = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "attention_interface"]
    if not found:
        return None
    masks = [_mask(call) for call in found]
    return _Call(
        frozenset(keyword.arg for call in found for keyword in call.keywords if keyword.arg is not None),
        all(any(keyword.arg is None for keyword in call.keywords) for call in found),
        all(isinstance(mask, ast.Name) and mask.id == "attention_mask" for mask in masks),
        frozenset(name for call in calls if (name := getattr(call.func, "attr", "")) in POSITIONS),
    )


def _mask(call: ast.Call) -> ast.expr | None:
    """The mask of ``attention_interface(module, query, key, value, mask, …)``."""
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    return call.args[4] if len(call.args) > 4 else named.get("attention_mask")
