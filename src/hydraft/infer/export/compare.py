"""Measures how much the logits of an exported model differ from those of the trained one, which is no longer in memory then."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hydraft.config.choices import Layout, Precision, QuantKind
from hydraft.config.model import ModelConfig
from hydraft.config.schema import QuantConfig
from hydraft.infer.export.published_layout import native_weights
from hydraft.infer.load import own_precision
from hydraft.models import fp32_weights
from hydraft.models.load import load_base
from hydraft.models.quant import DTYPES

Logits = list[torch.Tensor]
"""(T, V) each, fp32."""

TOLERANCES = {Precision.fp32: 1e-3, Precision.fp16: 0.02, Precision.bf16: 0.1}
INT8_TOLERANCE = 0.2


@torch.inference_mode()
def logits(model: torch.nn.Module, prompts: list[list[int]]) -> Logits:
    """A model's logits at each token of each prompt."""
    device = next(model.parameters()).device
    return [model(input_ids=torch.tensor([prompt], device=device)).logits[0].float().cpu() for prompt in prompts]


def difference(ours: Logits, theirs: Logits) -> dict[str, float]:
    """How the logits differ: the largest and the mean difference, and the share of positions with the same likeliest token.

    ``relative`` is the root mean square of the differences over that of ``ours``, the mean of each position subtracted.
    """
    differences = torch.cat([(mine - other).flatten() for mine, other in zip(ours, theirs, strict=True)])
    same = torch.cat([mine.argmax(-1) == other.argmax(-1) for mine, other in zip(ours, theirs, strict=True)])
    spread = torch.cat([(mine - mine.mean(-1, keepdim=True)).flatten() for mine in ours])
    return {
        "logit_max": float(differences.abs().max()),
        "logit_mean": float(differences.abs().mean()),
        "relative": float(differences.square().mean().sqrt() / spread.square().mean().sqrt()),
        "same_token": float(same.float().mean()),
        "positions": len(same),
    }


def tolerance(quant: QuantKind, *precisions: Precision) -> float:
    """The largest ``relative`` difference of a merged model that is due to rounding, five times what was measured or more.

    Args:
        quant: of training; LLM.int8() also rounds the inputs of layers, which merged weights do not.
        precisions: that of training, and that of the merged weights.
    """
    return max(TOLERANCES[precision] for precision in precisions) if quant is not QuantKind.int8 else INT8_TOLERANCE


def exported_logits(
    folder: Path,
    layout: Layout,
    section: ModelConfig,
    precision: Precision,
    device: torch.device,
    prompts: list[list[int]],
) -> Logits:
    """The logits of an exported model, computed in ``precision``, that of training.

    On the CPU, the weights stay pages of the mapped files: each layer's are cast as it computes.

    Args:
        folder: of the exported model.
        layout: of its weights.
        section: the native base that it was made from.
        precision: of the computation.
        device: to load it on.
        prompts: as ids.
    """
    made = dataclasses.replace(section, dtype=Precision.auto)
    if layout is Layout.native:
        made = dataclasses.replace(made, path=str(folder), revision=None)
    stored = own_precision(made)
    model = load_base(made, QuantConfig(), stored, device)
    own = dict(model.named_parameters())
    weights = native_weights(folder) if layout is Layout.published else fp32_weights.read(str(folder)).items()
    for name, value in weights:
        own[name].data = value.to(device)
    del own
    computed = DTYPES[Precision.fp32 if device.type == "cpu" and precision is Precision.fp16 else precision]
    with cast(model.eval(), computed):
        return logits(model, prompts)


@contextmanager
def cast(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """Within, the model computes in ``dtype``: the weights of each decoder layer are cast as it begins, and dropped as it ends."""
    before: dict[torch.nn.Parameter, torch.Tensor] = {}

    def begin(module: Any, _: Any) -> None:
        for parameter in parameters[module]:
            if parameter.is_floating_point() and parameter.dtype is not dtype:
                before[parameter] = parameter.data
                parameter.data = parameter.data.to(dtype)

    def end(module: Any, *_: Any) -> None:
        for parameter in parameters[module]:
            if parameter in before:
                parameter.data = before.pop(parameter)

    parameters = dict(_units(model))
    hooks = [
        hook for unit in parameters for hook in (unit.register_forward_pre_hook(begin), unit.register_forward_hook(end))
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _units(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, list[torch.nn.Parameter]]]:
    """What computes with weights of its own, and these: each layer of a list with all that is in it, since layers also read the weights
    of their parts, and elsewhere each module."""
    if isinstance(module, torch.nn.ModuleList):
        yield from ((layer, list(layer.parameters())) for layer in module)
        return
    if own := list(module.parameters(recurse=False)):
        yield module, own
    for child in module.children():
        yield from _units(child)
