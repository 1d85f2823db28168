"""What a model family declares: ``Family`` for one that transformers loads, ``PublishedFamily`` for one that is converted. No torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hydraft.config.choices import Kernels
from hydraft.models.families.layout import Rule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ALIBI_FEATURES = 8
"""Features that ALiBi adds to a head in 16 bits (``FEATURES`` of ``models/architectures``)."""

Native = dict[str, Any]
"""The arguments of ``AutoConfig.for_model``."""


@dataclass(frozen=True)
class Family:
    """A ``model_type`` of transformers: its layers, its head, its kernels and its LoRA targets."""

    models: str
    """The models that the table of kernels names."""
    architectures: Mapping[str, Native] = field(default_factory=dict)
    """By the ``architecture`` of conf/model: what the native configs of all its sizes share."""
    kernels: Mapping[Kernels, str] = field(default_factory=dict)
    """The libraries that have kernels for it, and the model type whose patches they apply."""
    plain_head: bool = False
    """Whether the logits are the head's output, neither capped nor scaled: the loss may then be computed in chunks."""
    query_bias: bool | None = None
    """Whether query, key and value have a bias; None if ``attention_bias`` of its config decides."""
    output_bias: bool | None = None
    """Whether the attention's output has a bias; None if ``attention_bias`` of its config decides."""
    head_norms: bool = False
    """Whether queries and keys are normalised head by head."""
    output_gate: bool = False
    """Whether q_proj also computes a gate of the attention's output, with as many rows again."""
    hybrid: bool = False
    """Whether layers that ``layer_types`` (or ``full_attention_interval``) names are gated delta nets instead of attention."""
    experts: bool = False
    """Whether every layer's feed-forward block is a mixture of experts, each projection of all of them in one parameter."""
    joined_query: bool = False
    """Whether query, key and value are one matrix, ``qkv_proj``."""
    more_norms: tuple[str, ...] = ()
    """Norms of a decoder layer besides ``input_layernorm`` and ``post_attention_layernorm``."""
    tied: bool = False
    """Whether the head is tied to the embedding where config.json does not say."""
    joined_gate: bool = False
    """Whether gate_proj and up_proj are one matrix, ``gate_up_proj``."""
    alibi: bool = False
    """Whether it has ALiBi (``models/architectures``), for which there is no paged attention."""
    lora_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Common LoRA target names that it does not have, and its layers that hold the same weights."""


class PublishedFamily(Protocol):
    """A family whose published checkpoints need remote code and are converted to a native one; each is a module."""

    NAME: str
    """Its name in the manifest of a conversion."""
    MODELS: tuple[str, ...]
    """The published models that can be converted."""
    ARCHITECTURES: dict[str, Native]
    """By the ``architecture`` of conf/model: what the native configs of all its sizes share."""
    LORA_NAMES: dict[str, tuple[str, ...]]
    """LoRA target names of the published layout, and the native layers that hold the same weights."""
    DROPPED: re.Pattern[str]
    """Names of published tensors that the native model does not have."""
    REVERSIBLE: bool
    """Whether native weights can be exported in the published layout."""

    def recognises(self, config: Mapping[str, Any], folder: Path, /) -> bool:
        """Whether a folder with this config.json is of this family."""

    def refuse(self, config: Mapping[str, Any], folder: Path, /) -> None:
        """Raise a ConfigError for a variant of the family that is not supported."""

    def native_config(self, config: Mapping[str, Any], /) -> Native:
        """The native config of a published config.json.

        With ``architectures``, and ``bos_token_id``, ``eos_token_id`` and ``pad_token_id`` (None without one).
        """

    def rules(self, config: Mapping[str, Any], /) -> dict[str, Rule]:
        """Every published tensor that is used, and the native tensors that it becomes."""

    def tokenizer(self, folder: Path, config: Mapping[str, Any], /) -> "PreTrainedTokenizerFast":
        """The fast tokenizer, with the chat template of the published model.

        Tokens that end an answer besides its end-of-sequence token are its ``answer_ends``, and what a model writes between the
        role's token and the text of an answer is its ``answer_begins``; both are saved with it.
        """
