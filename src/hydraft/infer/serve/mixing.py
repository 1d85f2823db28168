"""Several adapters of one base in one batch: each row of a layer's input gets the update of its own request's adapter.

The base's weights are there once and each adapter adds only its own, so a process serves the base and its adapters in the
memory of the base and a little, and a batch is never held back by which of them its requests ask for. (peft switches adapters
a batch at a time, and its mixed batches go by sequences; here a row is a token, of whichever request.)

Shapes: T tokens of the batch, all requests' one after another; D features.
"""

from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from hydraft.config import ConfigError
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
        ConfigError: an adapter is no LoRA, or replaces weights of the base.
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


def mix(model: PreTrainedModel | peft.PeftModel, batch: Batch) -> None:
    """Make the model's layers read from ``batch`` which adapter each row is for."""
    if isinstance(model, peft.PeftModel):
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                layer.forward = _by_row(layer, batch)


def _by_row(layer: Any, batch: Batch) -> Any:
    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:  # x: (1, T, D)
        names = batch.adapters if x.shape[1] == len(batch.adapters) else batch.last  # the head may see last rows only
        assert x.shape[:2] == (1, len(names)), f"{tuple(x.shape)} for {len(names)} rows"
        if not any(name in layer.scaling for name in names):
            return layer.base_layer(x, *args, **kwargs)  # type: ignore[no-any-return]
        mixed = layer._mixed_batch_forward(x.transpose(0, 1), *args, adapter_names=names, **kwargs)  # (T, 1, D)
        return mixed.transpose(0, 1)  # type: ignore[no-any-return]

    return forward
