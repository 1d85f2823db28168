"""Merges an adapter into the weights that it was trained with, one tensor at a time, as each is written.

The merged weight is the one that the layer computed with: under NF4 or int8 that is the dequantised weight, not the published one.
Each layer is dequantised and merged in fp32, by peft, and rounded once, to the type in which it is saved. In memory are the trained model,
the adapter, and the layer that is merged; the weights of the base stay pages of its mapped files.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.tuners.vera.layer import VeraLayer
from peft.utils.integrations import dequantize_module_weight
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from safetensors import safe_open
from transformers import PreTrainedModel

from hydraft.config.choices import Precision
from hydraft.config.model import ModelConfig
from hydraft.errors import ConfigError
from hydraft.infer.load import own_precision
from hydraft.infer.source import ADAPTER, Kind, Source
from hydraft.models import experts, fp32_weights
from hydraft.models.convert import shards
from hydraft.models.merging_base import load_for_merging
from hydraft.models.quant import DTYPES


@dataclass(frozen=True)
class Merged:
    """A model without an adapter that computes the same as the trained one, whose weights are made as they are read."""

    base: PreTrainedModel
    """Of the merged model's class and config. It has the layers of peft in it, and cannot be saved itself."""
    weights: shards.Shard
    """By the names of ``base``; of weights that are tied, the first."""


def merged(trained: torch.nn.Module, source: Source, section: ModelConfig, precision: Precision) -> Merged:
    """The merged model.

    Args:
        trained: the model as in training: the base, quantised or not, with the adapter. Its 4-bit and 8-bit layers are read as needed.
        source: the adapter, or a whole model.
        section: the prepared base.
        precision: the type of the merged weights; those that the base stores in fp32 beside 16-bit ones stay in fp32.
    """
    stored = own_precision(section)
    base = load_for_merging(dataclasses.replace(section, dtype=Precision.auto), stored)
    exact = fp32_weights.read(section.path)
    saved = _saved(source.folder / ADAPTER) if source.kind is Kind.adapter else set()
    tied = _untie(base, saved)
    own, names = dict(base.named_parameters()), _names(base)
    model: torch.nn.Module = base
    if source.kind is Kind.adapter:
        for name in saved & own.keys():  # the adapter replaces these, and may have more bits
            own[name].data = own[name].data.to(DTYPES[precision])
        model = peft.PeftModel.from_pretrained(base, str(source.folder), autocast_adapter_dtype=True)
    for name in exact.keys() & own.keys():  # only now: an adapter on the head is saved with a rounded copy of the head
        own[name].data = exact[name]
    quantised = {
        model.get_submodule(name): layer
        for name, layer in trained.named_modules()
        if isinstance(layer, (Linear4bit, Linear8bitLt)) or experts.is_quantised(layer)
    }
    made = _Weights(base, quantised, frozenset(exact), DTYPES[precision], DTYPES[stored], str(source.folder))
    if tied is not None:
        same = torch.equal(*(made.read(name) for name in tied))
        _record_tying(base, same)  # only now: peft reads it to know whether an adapter is on both
        names = [name for name in names if not (same and name == tied[0])]
    return Merged(base, shards.Shard(names, made.describe, made.read))


def _names(base: PreTrainedModel) -> list[str]:
    """Parameters, of tied ones the first, and buffers that are saved."""
    state = base.state_dict()
    buffers = [name for name, _ in base.named_buffers() if name in state]
    ignored = set(getattr(base, "_keys_to_ignore_on_save", None) or ())
    return [name for name in (*dict(base.named_parameters()), *buffers) if name not in ignored]


def _saved(adapter: Path) -> set[str]:
    """The names of the tensors of an adapter; those that replace a weight of the base by the name of that weight."""
    with safe_open(adapter, framework="pt") as file:
        names = list(file.keys())
    return {name.removeprefix("base_model.model.").replace(".base_layer.", ".") for name in names}


def _untie(model: PreTrainedModel, saved: set[str]) -> tuple[str, str] | None:
    """Give the language-model head weights of its own, if it shares those of the embedding and the adapter is on one of them.

    An adapter on the head or on the embedding changes that layer only.

    Returns:
        The names of both weights, or None.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return None
    names = {module: name for name, module in model.named_modules()}
    last = {names[layer].rpartition(".")[2] for layer in (head, embedding)}
    if not any(last & set(name.split(".")) for name in saved):
        return None
    head.weight = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    return f"{names[head]}.weight", f"{names[embedding]}.weight"


def _record_tying(model: PreTrainedModel, tied: bool) -> None:
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = tied


@dataclass(frozen=True)
class _Weights:
    """Makes the merged weights of ``base``, in which peft has put its layers."""

    base: PreTrainedModel
    quantised: Mapping[torch.nn.Module, torch.nn.Module]
    """The trained layers of layers of ``base``."""
    exact: frozenset[str]
    """Names of weights that stay in fp32."""
    dtype: torch.dtype
    """Of the merged weights."""
    stored: torch.dtype
    """Of the base."""
    folder: str
    """For messages."""

    def describe(self, name: str) -> shards.Tensor:
        """The header of a merged weight."""
        layer, leaf = self._layer(name)
        value = getattr(_base_layer(layer), leaf)
        return shards.described(torch.empty(value.shape, dtype=self._dtype(name, value), device="meta"))

    def _dtype(self, name: str, value: torch.Tensor) -> torch.dtype:
        kept = value.dtype is torch.float32 if name in self.exact else not isinstance(value, torch.nn.Parameter)
        return value.dtype if kept and value.dtype is not self.stored else self.dtype

    @torch.no_grad()
    def read(self, name: str) -> torch.Tensor:
        """A merged weight, on the CPU.

        Raises:
            ConfigError: a number in it is not finite.
        """
        layer, leaf = self._layer(name)
        base = _base_layer(layer)
        dtype = self._dtype(name, getattr(base, leaf))
        tuner = _tuner(layer, leaf)
        value = self._unmerged(base, leaf) if tuner is None else self._merge(tuner, base, leaf)
        return value.detach().to(dtype)

    def _layer(self, name: str) -> tuple[torch.nn.Module, str]:
        """The module of a weight, or the layer that peft put in its place, and the name of the weight in it."""
        path, _, leaf = name.rpartition(".")
        module: Any = self.base
        for part in path.split(".") if path else ():
            module = getattr(_base_layer(module), part)
            if isinstance(module, ModulesToSaveWrapper):
                module = module.modules_to_save[module.active_adapter]
        return module, leaf

    def _unmerged(self, layer: torch.nn.Module, leaf: str) -> torch.Tensor:
        trained = self.quantised.get(layer)
        if trained is not None and experts.is_quantised(trained):
            return experts.weight(trained, leaf).cpu() if experts.is_stacked(trained, leaf) else getattr(layer, leaf)
        trained = trained if leaf == "weight" else None
        value: torch.Tensor = getattr(layer, leaf) if trained is None else dequantize_module_weight(trained).data.cpu()
        return value

    def _merge(self, tuner: Any, base: torch.nn.Module, leaf: str) -> torch.Tensor:
        """What peft's ``tuner`` makes of a parameter of ``base``, which stays as it is."""
        names = (
            [leaf] if isinstance(tuner, ParamWrapper) else [name for name, _ in base.named_parameters(recurse=False)]
        )
        before = {name: base.get_parameter(name).data for name in names}
        try:
            for name in names:
                base.get_parameter(name).data = self._unmerged(base, name).data.float()
            tuner.merge(safe_merge=True)
            return base.get_parameter(leaf).data
        except ValueError as error:  # a weight is not finite
            raise ConfigError(f"run={self.folder}: cannot be merged: {error}") from error
        finally:
            for name, data in before.items():
                base.get_parameter(name).data = data
            tuner.merged_adapters.clear()


def _base_layer(module: Any) -> Any:
    """The layer of the base in a layer of peft; any other module itself."""
    module = module.token_adapter if isinstance(module, TrainableTokensWrapper) else module
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _tuner(layer: Any, leaf: str) -> Any:
    """The layer of peft that changes the parameter ``leaf`` of its base layer; None if it stays."""
    while isinstance(layer, ParamWrapper) and layer.parameter_name != leaf:
        layer = layer.base_layer
    if isinstance(layer, TrainableTokensWrapper):
        return layer.token_adapter if leaf == "weight" else None
    if isinstance(layer, VeraLayer):
        return layer if leaf == "weight" else None
    if not isinstance(layer, LoraLayer):
        return None
    changed = isinstance(layer, ParamWrapper) or leaf == "weight" or any(layer.lora_bias.values())
    return layer if changed else None
