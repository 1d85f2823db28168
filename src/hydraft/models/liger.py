"""Liger's kernels (Hsu et al. 2024, arXiv:2410.10989) under a native model: RMSNorm, SwiGLU, rotary positions, and a loss that never
holds all logits.

Liger patches module globals of transformers as well as the instance: one model a process, as in a rank.
"""

import functools
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel

from hydraft.config.choices import Kernels
from hydraft.models.families.native import FAMILIES


def patch(model: PreTrainedModel) -> None:
    """Have ``model`` compute with Liger's kernels; before an adapter is put on it, and whatever ZeRO-3 has done with its weights.

    Raises:
        KeyError: Liger has none for its family (``kernel_support`` refuses such a run).
    """
    patches = FAMILIES[str(model.config.model_type)].kernels[Kernels.liger]
    if patches == "glm4":
        _patch_glm(model)
    else:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model=model)
    head = model.get_output_embeddings()
    if head is not None and head.weight.requires_grad:
        _accumulate_in_fp32(model)


def _patch_glm(model: Any) -> None:
    """GLM has GLM-4's loss and Phi-3's MLP. Its rotary positions pair neighbours, where Liger's pair halves: they stay torch's."""
    from liger_kernel.transformers import monkey_patch
    from liger_kernel.transformers.model.glm4 import lce_forward

    model.forward = MethodType(lce_forward, model)
    monkey_patch._patch_rms_norm_module(model.model.norm)
    for layer in model.model.layers:
        monkey_patch._patch_swiglu_module(layer.mlp, monkey_patch.LigerPhi3SwiGLUMLP)
        monkey_patch._patch_rms_norm_module(layer.input_layernorm)
        monkey_patch._patch_rms_norm_module(layer.post_attention_layernorm)


def _accumulate_in_fp32(model: Any) -> None:
    """The gradient of a head that is trained is a sum over chunks of tokens: in the weight's own type, bf16 would lose most of it."""
    inner = model.forward

    @functools.wraps(inner)
    def forward(*args: Any, **named: Any) -> Any:
        return inner(*args, **({"accum_dtype": torch.float32} | named if "labels" in named else named))

    model.forward = forward
