"""Loads the base that an adapter is merged into."""

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from transformers import PreTrainedModel
from transformers.integrations.bitsandbytes import Bnb4bitDeserialize, Bnb8bitDeserialize

from hydraft.config.choices import Precision
from hydraft.config.model import ModelConfig
from hydraft.config.schema import QuantConfig
from hydraft.models import experts, stored_quant
from hydraft.models.load import config_of, load_base
from hydraft.models.quant import DTYPES

BNB = (Bnb4bitDeserialize, Bnb8bitDeserialize)
"""What transformers does to weights that bitsandbytes stored, as it loads them."""


def load_for_merging(model: ModelConfig, precision: Precision) -> PreTrainedModel:
    """``load_base`` with unquantised layers, on the CPU. In the data type of the checkpoint, weights stay pages of its mapped files.

    Of a checkpoint that is stored quantised, quantised layers have zeros for weights, which take no memory: these are read from the
    trained model.
    """
    stored = stored_quant.recorded(config_of(model).to_dict())
    if stored is None or stored.quant is None:
        return load_base(model, QuantConfig(), precision)
    base = load_base(model, stored.quant, precision)
    for name, module in list(base.named_modules()):
        if isinstance(module, (Linear4bit, Linear8bitLt)):
            with torch.device("meta"):
                layer = torch.nn.Linear(module.in_features, module.out_features, bias=False)
            zeros = torch.zeros((), dtype=DTYPES[precision]).expand(module.out_features, module.in_features)
            layer.weight, layer.bias = torch.nn.Parameter(zeros, requires_grad=False), module.bias
            base.set_submodule(name, layer)
        experts.unquantised(module, DTYPES[precision])
    quantizer: Any = base.hf_quantizer
    quantizer.remove_quantization_config(base)
    # transformers would apply these, in reverse, to the weights that it saves.
    conversions: list[Any] = getattr(base, "_weight_conversions", None) or []
    kept = [one for one in conversions if not any(isinstance(step, BNB) for step in getattr(one, "operations", ()))]
    vars(base)["_weight_conversions"] = kept
    return base
