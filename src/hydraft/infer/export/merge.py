"""Merges an adapter into the weights that it was trained with, and measures how much the result's logits differ.

The merged weight is the one that the layer computed with: under NF4 or int8 that is the dequantised weight, not the published one.
Each layer is dequantised and merged in fp32 and rounded once, to the type in which it is saved.
"""

import dataclasses
from typing import Any

import peft
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from transformers import PreTrainedModel

from hydraft.config.choices import Precision, QuantKind
from hydraft.config.model import ModelConfig
from hydraft.errors import ConfigError
from hydraft.infer.source import Kind, Source
from hydraft.models import fp32_weights
from hydraft.models.load import load_unquantised
from hydraft.models.quant import DTYPES

Logits = list[torch.Tensor]
"""(T, V) each, fp32."""

TOLERANCES = {Precision.fp32: 1e-3, Precision.fp16: 0.02, Precision.bf16: 0.1}
INT8_TOLERANCE = 0.2


@torch.no_grad()
def merged(trained: torch.nn.Module, source: Source, section: ModelConfig, precision: Precision) -> PreTrainedModel:
    """A model without an adapter, in ``precision``, that computes the same as ``trained``.

    Args:
        trained: the model as in training: the base, quantised or not, with the adapter.
        source: the adapter.
        section: the prepared base.
        precision: the type of the merged weights; those that the base stores in fp32 beside 16-bit ones stay in fp32.
    """
    base = load_unquantised(dataclasses.replace(section, dtype=Precision.auto), precision)
    exact = fp32_weights.read(section.path)
    dequantised = {
        name: dequantize_module_weight(layer).data.cpu()
        for name, layer in trained.named_modules()
        if isinstance(layer, (Linear4bit, Linear8bitLt))
    }
    own = dict(base.named_parameters())
    if source.kind is Kind.model:
        for name in exact.keys() & own.keys():
            own[name].data = exact[name]
        for name, weight in dequantised.items():
            base.get_submodule(name).weight.data = weight.to(DTYPES[precision])
        return base
    tied = _untie(base)
    model = peft.PeftModel.from_pretrained(base, str(source.folder), autocast_adapter_dtype=True)
    for name in exact.keys() & own.keys():  # only now: an adapter on the head is saved with a rounded copy of the head
        own[name].data = exact[name]
    for name, weight in dequantised.items():
        model.get_submodule(name).weight.data = weight
    for layer in list(model.modules()):
        if isinstance(layer, LoraLayer) and isinstance(getattr(layer.get_base_layer(), "weight", None), torch.Tensor):
            weight = layer.get_base_layer().weight
            weight.data = weight.data.float()
    if tied:
        _record_tying(base, False)  # only now: peft reads it to know whether an adapter is on both
    try:
        plain = model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # a weight is not finite
        raise ConfigError(f"run={source.folder}: cannot be merged: {error}") from error
    assert isinstance(plain, PreTrainedModel)
    for name, parameter in plain.named_parameters():
        if name not in exact:
            parameter.data = parameter.data.to(DTYPES[precision])
    if tied:
        _tie_if_equal(plain)
    return plain


def _untie(model: PreTrainedModel) -> bool:
    """Give the language-model head weights of its own; False if it has them already.

    An adapter on the head or on the embedding changes that layer only.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return False
    head.weight = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    return True


def _tie_if_equal(model: PreTrainedModel) -> None:
    """Tie head and embedding again if the adapter changed neither, or both alike."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    if torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
        _record_tying(model, True)


def _record_tying(model: PreTrainedModel, tied: bool) -> None:
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = tied


@torch.inference_mode()
def logits(model: torch.nn.Module, prompts: list[list[int]]) -> Logits:
    """A model's logits at each token of each prompt."""
    device = next(model.parameters()).device
    return [model(input_ids=torch.tensor([prompt], device=device)).logits[0].float().cpu() for prompt in prompts]


def difference(ours: Logits, theirs: Logits) -> dict[str, float]:
    """How the logits differ: the largest and the mean difference, and the share of positions with the same likeliest token.

    ``relative`` is the root mean square of the differences over that of ``ours``, the mean of each position subtracted.
    """
    differences = torch.cat([(mine - other).flatten() for mine, other in zip(ours, theirs, strict=True)])
    same = torch.cat([mine.argmax(-1) == other.argmax(-1) for mine, other in zip(ours, theirs, strict=True)])
    spread = torch.cat([(mine - mine.mean(-1, keepdim=True)).flatten() for mine in ours])
    return {
        "logit_max": float(differences.abs().max()),
        "logit_mean": float(differences.abs().mean()),
        "relative": float(differences.square().mean().sqrt() / spread.square().mean().sqrt()),
        "same_token": float(same.float().mean()),
        "positions": len(same),
    }


def tolerance(quant: QuantKind, *precisions: Precision) -> float:
    """The largest ``relative`` difference of a merged model that is due to rounding, five times what was measured or more.

    Args:
        quant: of training; LLM.int8() also rounds the inputs of layers, which merged weights do not.
        precisions: that of training, and that of the merged weights.
    """
    return max(TOLERANCES[precision] for precision in precisions) if quant is not QuantKind.int8 else INT8_TOLERANCE
