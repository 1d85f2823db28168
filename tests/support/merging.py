"""Merging a whole model in memory, with peft's own ``merge_and_unload``: what exports are compared with, bit for bit."""

import dataclasses
from pathlib import Path
from typing import Any

import peft
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from transformers import AutoModelForCausalLM

from hydraft.config.choices import Precision
from hydraft.config.model import ModelConfig
from hydraft.config.schema import QuantConfig
from hydraft.infer.source import Kind, Source
from hydraft.models import fp32_weights
from hydraft.models.families.registry import published_config
from hydraft.models.load import load_base
from hydraft.models.quant import DTYPES


@torch.no_grad()
def merged_whole(trained: torch.nn.Module, source: Source, section: ModelConfig, precision: Precision) -> Any:
    """The merged model, of plain layers."""
    dtype = DTYPES[precision]
    base: Any
    if source.quant.kind.value != "none" and "quantization_config" in published_config(Path(section.path)):
        base = AutoModelForCausalLM.from_pretrained(section.path, dtype=dtype).dequantize(dtype)
        base._weight_conversions = []
    else:
        base = load_base(dataclasses.replace(section, dtype=Precision.auto), QuantConfig(), precision)
    exact = fp32_weights.read(section.path)
    layers = [pair for pair in trained.named_modules() if isinstance(pair[1], (Linear4bit, Linear8bitLt))]
    dequantised = {name: dequantize_module_weight(layer).data.cpu() for name, layer in layers}
    own = dict(base.named_parameters())
    if source.kind is Kind.model:
        for name in exact.keys() & own.keys():
            own[name].data = exact[name]
        for name, weight in dequantised.items():
            base.get_submodule(name).weight.data = weight.to(dtype)
        return base
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    tied = head.weight is embedding.weight
    if tied:
        head.weight = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    model = peft.PeftModel.from_pretrained(base, str(source.folder), autocast_adapter_dtype=True)
    for name in exact.keys() & own.keys():
        own[name].data = exact[name]
    for name, weight in dequantised.items():
        model.get_submodule(name).weight.data = weight
    for layer in list(model.modules()):
        if isinstance(layer, LoraLayer) and isinstance(getattr(layer.get_base_layer(), "weight", None), torch.Tensor):
            layer.get_base_layer().weight.data = layer.get_base_layer().weight.data.float()
    if tied:
        base.config.tie_word_embeddings = False
    plain: Any = model.merge_and_unload(safe_merge=True)
    for name, parameter in plain.named_parameters():
        if name not in exact:
            parameter.data = parameter.data.to(dtype)
    head, embedding = plain.get_output_embeddings(), plain.get_input_embeddings()
    if tied and torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
        plain.config.tie_word_embeddings = True
    return plain
