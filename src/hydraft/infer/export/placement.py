"""Chooses the device on which a model is compared: the GPU if it fits there, else the CPU, where weights may stay on the disk."""

from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hydraft.config.choices import Precision, QuantKind
from hydraft.config.model import ModelConfig
from hydraft.config.schema import QuantConfig
from hydraft.infer.load import device_of
from hydraft.models import fp32_weights
from hydraft.models.quant import DTYPES

SPARE = 2 << 30
"""Bytes of GPU memory for the context of CUDA's libraries, activations and logits of the prompts."""
PER_WEIGHT = 12
"""Bytes for each weight of the largest layer: dequantised, and merged with its update."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model, in bytes."""

    trained: int
    """Of its weights as in training."""
    merged: int
    """Of the merged weights."""
    working: int
    """Of what a forward pass needs beside them."""


def sizes(section: ModelConfig, quant: QuantConfig, trained: Precision, merged: Precision) -> Sizes:
    """The sizes of a prepared model, from its config.

    Args:
        section: the base.
        quant: of training.
        trained: the precision of training.
        merged: that of the merged weights.
    """
    config = AutoConfig.from_pretrained(
        section.path, revision=section.revision, trust_remote_code=section.trust_remote_code
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=section.trust_remote_code)
    exact = fp32_weights.found_in(section.path)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    quantised = _quantised(model, quant)
    width, wide = DTYPES[trained].itemsize, DTYPES[merged].itemsize
    return Sizes(
        trained=sum(int(count * quantised.get(name, width)) for name, count in counts.items()),
        merged=sum(count * (4 if name in exact else wide) for name, count in counts.items()),
        working=SPARE + PER_WEIGHT * max(counts.values(), default=0),
    )


def _quantised(model: PreTrainedModel, quant: QuantConfig) -> dict[str, float]:
    """The bytes of each number of the weights that bitsandbytes quantises: all linear layers but the head."""
    if quant.kind is QuantKind.none:
        return {}
    # A scale for each 64 numbers: in fp32, or a byte and an fp32 for each 256 of them (arXiv:2305.14314, section 3).
    scale = (1 + 4 / 256) / 64 if quant.double_quant else 4 / 64
    bytes_each = 0.5 + scale if quant.kind is QuantKind.nf4 else 1.0
    head = model.get_output_embeddings()
    linear = [name for name, one in model.named_modules() if isinstance(one, torch.nn.Linear) and one is not head]
    return {f"{name}.weight": bytes_each for name in linear}


def device_for(requested: str, needed: int) -> tuple[torch.device, str | None]:
    """The device of ``device=`` for a model that needs so many bytes, and a line to print if that is not the first GPU."""
    device = device_of(requested)
    if requested != "auto" or device.type != "cuda":
        return device, None
    free, _ = torch.cuda.mem_get_info(device)
    return (device, None) if needed <= free else (torch.device("cpu"), too_large(needed, free))


def too_large(needed: int, free: int) -> str:
    """What is printed of a model that does not fit on the GPU."""
    return (
        f"takes {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free on the GPU: computed on the CPU "
        "(device=cuda uses the GPU nevertheless)"
    )
