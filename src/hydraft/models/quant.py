"""Maps the quant section to transformers' BitsAndBytesConfig."""

import logging

import torch
from transformers import BitsAndBytesConfig

from hydraft.config.choices import Precision, QuantKind
from hydraft.config.schema import QuantConfig

DTYPES = {Precision.fp32: torch.float32, Precision.fp16: torch.float16, Precision.bf16: torch.bfloat16}
"""The torch dtype of each resolved precision."""


def bits_and_bytes(quant: QuantConfig, precision: Precision) -> BitsAndBytesConfig | None:
    """How bitsandbytes stores the frozen weights; None without quantisation.

    NF4 with double quantisation is QLoRA's (Dettmers et al. 2023, arXiv:2305.14314). The packed weights are kept in
    tensors of the compute dtype, since ZeRO-3 shards a single dtype, and an engine that casts its module would otherwise
    change their bytes. int8 is LLM.int8() (arXiv:2208.07339).
    """
    if quant.kind is QuantKind.none:
        return None
    if quant.kind is QuantKind.int8:
        # On a GPU its matmul casts to fp16 and warns about it for each layer in each pass.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    dtype = DTYPES[precision]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=quant.double_quant,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )


def adopt(model: torch.nn.Module, precision: Precision) -> None:
    """Keep and compute the 4-bit weights of a quantised checkpoint as ``bits_and_bytes`` would; their values stay.

    Published checkpoints keep them in bytes, which ZeRO-3 cannot shard with the rest, and compute in a type of their own. The forward
    pass dequantises to that of its input; so must the backward pass and an export, which read it from ``quant_state``.
    """
    # Not at module level: it touches CUDA's driver on import, and this module is imported before ranks are forked.
    from bitsandbytes.nn import Linear4bit

    from hydraft.models import nf4

    dtype = DTYPES[precision]
    for module in model.modules():
        if not isinstance(module, Linear4bit):
            continue
        module.compute_dtype, module.compute_type_is_set = dtype, True
        codes, state = module.weight.data, module.weight.quant_state
        state.dtype = dtype
        nf4.share_tables(state, codes.device)
        if codes.dtype != dtype and codes.numel() * codes.element_size() % dtype.itemsize == 0:
            module.weight.data = codes.reshape(-1).view(dtype).unsqueeze(-1)
            module.weight.quant_storage = module.quant_storage = dtype
