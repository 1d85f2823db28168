"""A second tree of modules over the weights of a model: adapters in one are not seen in the other, and no weight is copied."""

import copy
from typing import Any, TypeVar

from bitsandbytes.nn import Linear4bit
from transformers import PreTrainedModel

from hydraft.models import experts

Model = TypeVar("Model", bound=PreTrainedModel)


def over_same_weights(model: Model) -> Model:
    """A copy of ``model`` whose parameters, buffers and quantisation constants are those of ``model`` itself.

    Methods that were replaced on instances (such as a chunked loss) still belong to ``model``: replace them in the copy afterwards.
    """
    kept: list[Any] = [*model.parameters(), *model.buffers(), getattr(model, "hf_quantizer", None)]
    for module in model.modules():
        if isinstance(module, Linear4bit):
            kept += [getattr(module, "quant_state", None), getattr(module.weight, "quant_state", None)]
    kept += [getattr(module._parameters[name], "quant_state", None) for _, module, name in experts.stacked(model)]
    return copy.deepcopy(model, {id(each): each for each in kept if each is not None})
