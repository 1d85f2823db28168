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

from hydraft.config.choices import Precision
from hydraft.config.model import ModelConfig
from hydraft.config.schema import QuantConfig
from hydraft.errors import ConfigError
from hydraft.infer.source import Kind, Source
from hydraft.models import fp32_weights
from hydraft.models.load import load_base
from hydraft.models.quant import DTYPES

Logits = list[torch.Tensor]
"""(T, V) each, fp32."""


@torch.no_grad()
def merged(trained: torch.nn.Module, source: Source, section: ModelConfig, precision: Precision) -> PreTrainedModel:
    """A model without an adapter, in ``precision``, that computes the same as ``trained``.

    Args:
        trained: the model as in training: the base, quantised or not, with the adapter.
        source: the adapter.
        section: the prepared base.
        precision: the type of the merged weights; those that the base stores in fp32 beside 16-bit ones stay in fp32.
    """
    base = load_base(dataclasses.replace(section, dtype=Precision.auto), QuantConfig(), precision)
    exact = fp32_weights.read(section.path)
    own = dict(base.named_parameters())
    adapted = source.kind is Kind.adapter
    model: Any = (
        peft.PeftModel.from_pretrained(base, str(source.folder), autocast_adapter_dtype=True) if adapted else base
    )
    for name in exact.keys() & own.keys():  # only now: an adapter on the head is saved with a rounded copy of the head
        own[name].data = exact[name]
    if not adapted:
        return base
    for name, layer in trained.named_modules():
        if isinstance(layer, (Linear4bit, Linear8bitLt)):
            model.get_submodule(name).weight.data = dequantize_module_weight(layer).data.cpu()
    for layer in list(model.modules()):
        if not isinstance(layer, LoraLayer):
            continue
        weight = layer.get_base_layer().weight
        weight.data = weight.data.float()
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:  # a weight is not finite
            raise ConfigError(f"run={source.folder}: cannot be merged: {error}") from error
    plain = model.unload()
    assert isinstance(plain, PreTrainedModel)
    for name, parameter in plain.named_parameters():
        if name not in exact:
            parameter.data = parameter.data.to(DTYPES[precision])
    return plain


@torch.inference_mode()
def logits(model: torch.nn.Module, prompts: list[list[int]]) -> Logits:
    """A model's logits at each token of each prompt."""
    device = next(model.parameters()).device
    return [model(input_ids=torch.tensor([prompt], device=device)).logits[0].float().cpu() for prompt in prompts]


def difference(ours: Logits, theirs: Logits) -> dict[str, float]:
    """The largest and mean difference of the logits, and the share of positions with the same likeliest token."""
    differences = torch.cat([(mine - other).abs().flatten() for mine, other in zip(ours, theirs, strict=True)])
    same = torch.cat([mine.argmax(-1) == other.argmax(-1) for mine, other in zip(ours, theirs, strict=True)])
    return {
        "logit_max": float(differences.max()),
        "logit_mean": float(differences.mean()),
        "same_token": float(same.float().mean()),
        "positions": len(same),
    }
