"""Multi-LoRA batching: each row of a layer's input gets the update of its own request's adapter.

The base's weights are in memory once and each adapter adds only its own, so one process serves the base and its adapters with
little more memory than the base needs, and requests for different adapters share a batch. (peft switches adapters per batch; its
mixed batches work on sequences and index with Python lists. Here a row is a token of any request, and the rows of each adapter
are copied to the device once per batch.)

Shapes: T tokens of the batch, the requests' one after another; D features in, F features out.
"""

from typing import Any

import peft
import torch
from peft.tuners.lora import Embedding, LoraLayer, ParamWrapper
from peft.tuners.lora.layer import MultiheadAttention, _ConvNd
from transformers import PreTrainedModel

from hydraft.errors import ConfigError
from hydraft.infer.serve.rows import Rows
from hydraft.infer.serve.sampler import BatchSampler

BASE = "__base__"
"""peft's adapter name for the base."""


def base_of(model: PreTrainedModel | peft.PeftModel) -> PreTrainedModel:
    """The transformers model, with the adapters' layers in it."""
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


def check(model: PreTrainedModel | peft.PeftModel) -> None:
    """Refuse adapters that cannot share a batch with others.

    Raises:
        ConfigError: an adapter is no LoRA, replaces weights of the base, or cannot be applied per token.
    """
    if not isinstance(model, peft.PeftModel):
        return
    for name, config in model.peft_config.items():
        if config.peft_type != peft.PeftType.LORA:
            raise ConfigError(
                f"run: the adapter {name} has the type {config.peft_type.value}, and mode=serve supports LoRA only: "
                "merge it with mode=export and serve the merged model"
            )
        if config.bias != "none" or config.modules_to_save or config.trainable_token_indices:
            raise ConfigError(
                f"run: the adapter {name} replaces weights of its base (bias, modules_to_save), which other adapters need: "
                "merge it with mode=export and serve the merged model"
            )
        if config.alora_invocation_tokens:
            raise ConfigError(
                f"run: the adapter {name} starts in the middle of a prompt (alora_invocation_tokens), which mode=serve does "
                "not support: use mode=batch"
            )
    unsupported = next(
        (layer for layer in model.modules() if isinstance(layer, (ParamWrapper, MultiheadAttention, _ConvNd))), None
    )
    if unsupported is not None:
        raise ConfigError(
            f"run: an adapter is on a layer whose rows are not tokens (peft's {type(unsupported).__name__}: target_parameters, "
            "convolutions): merge it with mode=export and serve the merged model"
        )


def install(model: PreTrainedModel | peft.PeftModel, batch: BatchSampler) -> None:
    """Replace the forward of the model's LoRA layers by one that takes each row's adapter from ``batch``."""
    if isinstance(model, peft.PeftModel):
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.forward = _by_row(layer, batch)


def _by_row(layer: Any, batch: BatchSampler) -> Any:
    update = _embedding if isinstance(layer, Embedding) else _linear

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # x: (1, T, D), of an embedding (1, T)
        rows = batch.rows if x.shape[1] == batch.rows.count else batch.last  # the head may get the last rows only
        assert x.shape[:2] == (1, rows.count), f"{tuple(x.shape)} for {rows.count} rows"
        result: torch.Tensor = layer.base_layer(x, *args, **kwargs)  # (1, T, F)
        if any(name in layer.scaling for name in rows.adapters):
            add(layer, update, x, result, rows, **kwargs)
        return result

    return forward


def add(layer: Any, update: Any, x: torch.Tensor, result: torch.Tensor, rows: Rows, **kwargs: Any) -> None:
    """peft's ``_mixed_batch_forward`` after the base layer, in place and with index tensors instead of lists."""
    for name, index in rows.on(x.device).items():
        if name not in layer.scaling:
            continue
        selected = x if index is None else x[:, index]
        if name in layer.lora_variant:  # DoRA and others: their output replaces the base's
            base_result = result if index is None else result[:, index]
            if update is _linear:
                selected = selected.to(layer.lora_A[name].weight.dtype)
            made = layer.lora_variant[name].forward(
                layer, active_adapter=name, x=selected, result=base_result, **kwargs
            )
            result[:, _all_or(index)] = made.to(result.dtype)
        else:
            result[:, _all_or(index)] += update(layer, name, selected).to(result.dtype)


def _all_or(index: torch.Tensor | None) -> Any:
    return slice(None) if index is None else index


def _linear(layer: Any, name: str, x: torch.Tensor) -> torch.Tensor:
    """The LoRA update of a linear layer: (1, T, F)."""
    down, up = layer.lora_A[name], layer.lora_B[name]
    return up(down(layer.lora_dropout[name](x.to(down.weight.dtype)))) * layer.scaling[name]  # type: ignore[no-any-return]


def _embedding(layer: Any, name: str, ids: torch.Tensor) -> torch.Tensor:
    """The LoRA update of an embedding: (1, T, F)."""
    added = layer._embed(ids, layer.lora_embedding_A[name].T) @ layer.lora_embedding_B[name].T * layer.scaling[name]
    scale = layer._get_embed_scale()
    return added if scale is None else added * scale.to(added.dtype)  # type: ignore[no-any-return]
