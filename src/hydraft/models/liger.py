"""Patches a native model with Liger's kernels (Hsu et al. 2024, arXiv:2410.10989): RMSNorm, SwiGLU, rotary positions and a fused loss.

Liger patches module globals of transformers as well as the instance, so a process can have only one model, as a rank does.
"""

import functools
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel

from hydraft.config.choices import Kernels
from hydraft.models.families.native import FAMILIES


def patch(model: PreTrainedModel) -> None:
    """Replace modules of ``model`` by Liger's, before an adapter is added; its weights may already be sharded by ZeRO-3.

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
    """GLM gets the loss of GLM-4 and the MLP of Phi-3. Its rotary positions stay torch's: they pair neighbours, and Liger's halves."""
    from liger_kernel.transformers import monkey_patch
    from liger_kernel.transformers.model.glm4 import lce_forward

    model.forward = MethodType(lce_forward, model)
    monkey_patch._patch_rms_norm_module(model.model.norm)
    for layer in model.model.layers:
        monkey_patch._patch_swiglu_module(layer.mlp, monkey_patch.LigerPhi3SwiGLUMLP)
        monkey_patch._patch_rms_norm_module(layer.input_layernorm)
        monkey_patch._patch_rms_norm_module(layer.post_attention_layernorm)


def _accumulate_in_fp32(model: Any) -> None:
    """Sum the gradient of a trained head over chunks of tokens in fp32: in bf16, most of it would be lost."""
    inner = model.forward

    @functools.wraps(inner)
    def forward(*args: Any, **named: Any) -> Any:
        return inner(*args, **({"accum_dtype": torch.float32} | named if "labels" in named else named))

    model.forward = forward
