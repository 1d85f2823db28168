"""Adapters as peft saves them, and merging a whole model in memory by its own ``merge_and_unload``: exports are compared with that."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import peft
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft.tuners.lora import LoraLayer
from peft.tuners.vera.layer import VeraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hydraft.config.choices import Precision
from hydraft.config.model import ModelConfig
from hydraft.config.schema import QuantConfig
from hydraft.infer.source import ADAPTER, Kind, Source
from hydraft.models import fp32_weights
from hydraft.models.families.registry import published_config
from hydraft.models.load import load_base
from hydraft.models.quant import DTYPES
from hydraft.system.source_tree import TINY


def trained(folder: Path, over: Path, **lora: Any) -> Path:
    """An adapter as peft saves it, with random numbers in every trained tensor, and the tokenizer beside it."""
    model = AutoModelForCausalLM.from_pretrained(over, dtype=torch.float32)
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | lora
    vera = settings.pop("vera", False)
    made: Any = peft.VeraConfig(**settings) if vera else peft.LoraConfig(**{"lora_alpha": 16} | settings)
    peft.get_peft_model(model, made).save_pretrained(folder)
    tensors = load_file(folder / ADAPTER)
    generator = torch.Generator().manual_seed(1)
    learned = [
        "lora_",
        "vera_lambda",
        "trainable_tokens",
        *lora.get("modules_to_save", ()),
    ]  # head and embedding are saved frozen too
    for name, tensor in tensors.items():
        if any(part in name for part in learned):
            tensors[name] = tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, folder / ADAPTER, {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TINY / name, folder / name)
    return folder


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
        if isinstance(layer, (LoraLayer, VeraLayer)) and isinstance(
            getattr(layer.get_base_layer(), "weight", None), torch.Tensor
        ):
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
