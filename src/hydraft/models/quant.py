"""The quant section to transformers' BitsAndBytesConfig."""

import logging

import torch
from transformers import BitsAndBytesConfig

from hydraft.config.choices import Precision, QuantKind
from hydraft.config.schema import QuantConfig

DTYPES = {Precision.fp32: torch.float32, Precision.fp16: torch.float16, Precision.bf16: torch.bfloat16}
"""What each resolved precision computes in."""


def bits_and_bytes(quant: QuantConfig, precision: Precision) -> BitsAndBytesConfig | None:
    """How bitsandbytes stores the frozen weights; None for as they are.

    NF4 with double quantisation is QLoRA's (Dettmers et al. 2023, arXiv:2305.14314). The packed weights are kept in
    tensors of the compute dtype, since ZeRO-3 shards one dtype only, and an engine that casts its module would else
    change their bytes. int8 is LLM.int8() (arXiv:2208.07339).
    """
    if quant.kind is QuantKind.none:
        return None
    if quant.kind is QuantKind.int8:
        # On a card its product takes fp16, and says so for each layer in each pass; nothing can be done about it.
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
