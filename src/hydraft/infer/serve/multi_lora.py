"""Several adapters of one base in one batch: each row of a layer's input gets the update of its own request's adapter.

The base's weights are there once and each adapter adds only its own, so a process serves the base and its adapters in the
memory of the base and a little, and a batch is never held back by which of them its requests ask for. (peft switches adapters
a batch at a time, and its mixed batches go by sequences and index with Python lists; here a row is a token, of whichever
request, and which rows are whose is told to the device once a batch.)

Shapes: T tokens of the batch, all requests' one after another; D features.
"""

from typing import Any

import peft
import torch
from peft.tuners.lora import Embedding, LoraLayer, ParamWrapper
from peft.tuners.lora.layer import MultiheadAttention, _ConvNd
from transformers import PreTrainedModel

from hydraft.errors import ConfigError
from hydraft.infer.serve.rows import Rows
from hydraft.infer.serve.sampler import Batch

BASE = "__base__"
"""What peft calls the base among adapters."""


def base_of(model: PreTrainedModel | peft.PeftModel) -> PreTrainedModel:
    """transformers' model, with any adapter's layers in it."""
    base = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


def check(model: PreTrainedModel | peft.PeftModel) -> None:
    """Whether the model's adapters can be told apart by row.

    Raises:
        ConfigError: an adapter is no LoRA, replaces weights of the base, or is not told apart by token.
    """
    if not isinstance(model, peft.PeftModel):
        return
    for name, config in model.peft_config.items():
        if config.peft_type != peft.PeftType.LORA:
            raise ConfigError(f"run: the adapter {name} is of kind {config.peft_type.value}, and mode=serve knows LoRA")
        if config.bias != "none" or config.modules_to_save or config.trainable_token_indices:
            raise ConfigError(
                f"run: the adapter {name} replaces weights of its base (bias, modules_to_save), which others beside it need: "
                "merge it with mode=export and serve what comes out"
            )
        if config.alora_invocation_tokens:
            raise ConfigError(
                f"run: the adapter {name} begins in the middle of a prompt (alora_invocation_tokens), which mode=serve does "
                "not know: use mode=batch"
            )
    whole = next(
        (layer for layer in model.modules() if isinstance(layer, (ParamWrapper, MultiheadAttention, _ConvNd))), None
    )
    if whole is not None:
        raise ConfigError(
            f"run: an adapter is on a layer whose rows are not tokens (peft's {type(whole).__name__}: target_parameters, "
            "convolutions): merge it with mode=export and serve what comes out"
        )


def mix(model: PreTrainedModel | peft.PeftModel, batch: Batch) -> None:
    """Make the model's layers read from ``batch`` which adapter each row is for."""
    if isinstance(model, peft.PeftModel):
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.forward = _by_row(layer, batch)


def _by_row(layer: Any, batch: Batch) -> Any:
    update = _embedding if isinstance(layer, Embedding) else _linear

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # x: (1, T, D), of an embedding (1, T)
        rows = batch.rows if x.shape[1] == batch.rows.count else batch.last  # the head may see last rows only
        assert x.shape[:2] == (1, rows.count), f"{tuple(x.shape)} for {rows.count} rows"
        result: torch.Tensor = layer.base_layer(x, *args, **kwargs)  # (1, T, F)
        if any(name in layer.scaling for name in rows.adapters):
            add(layer, update, x, result, rows, **kwargs)
        return result

    return forward


def add(layer: Any, update: Any, x: torch.Tensor, result: torch.Tensor, rows: Rows, **kwargs: Any) -> None:
    """What peft's ``_mixed_batch_forward`` does after the base layer, in place, with index tensors for its lists."""
    for name, index in rows.on(x.device).items():
        if name not in layer.scaling:
            continue
        mine = x if index is None else x[:, index]
        if name in layer.lora_variant:  # DoRA and others: what comes out replaces the base's
            so_far = result if index is None else result[:, index]
            if update is _linear:
                mine = mine.to(layer.lora_A[name].weight.dtype)
            made = layer.lora_variant[name].forward(layer, active_adapter=name, x=mine, result=so_far, **kwargs)
            result[:, _all_or(index)] = made.to(result.dtype)
        else:
            result[:, _all_or(index)] += update(layer, name, mine).to(result.dtype)


def _all_or(index: torch.Tensor | None) -> Any:
    return slice(None) if index is None else index


def _linear(layer: Any, name: str, x: torch.Tensor) -> torch.Tensor:
    """What a LoRA adds to a linear layer: (1, T, F)."""
    down, up = layer.lora_A[name], layer.lora_B[name]
    return up(down(layer.lora_dropout[name](x.to(down.weight.dtype)))) * layer.scaling[name]  # type: ignore[no-any-return]


def _embedding(layer: Any, name: str, ids: torch.Tensor) -> torch.Tensor:
    """What a LoRA adds to an embedding: (1, T, D)."""
    added = layer._embed(ids, layer.lora_embedding_A[name].T) @ layer.lora_embedding_B[name].T * layer.scaling[name]
    scale = layer._get_embed_scale()
    return added if scale is None else added * scale.to(added.dtype)  # type: ignore[no-any-return]
