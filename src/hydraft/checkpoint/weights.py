"""Saving what was trained: whole or not at all, and reopened to see that it is there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import peft
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hydraft.checkpoint import manifest
from hydraft.models import base_identity
from hydraft.models.load import trainable
from hydraft.system import files

Tensors = dict[str, torch.Tensor]
ADAPTER_FILE = "adapter_model.safetensors"


def gather(model: torch.nn.Module, parameters: dict[str, torch.nn.Parameter]) -> Tensors:
    """Whole copies of ``parameters`` in main memory, on rank 0; the other ranks must call it and get nothing.

    Under ZeRO-3 a rank holds slices; they are gathered one parameter at a time, so that memory stays near one.
    """
    whole: Tensors = {}
    for name, parameter in parameters.items():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if dist.get_rank() == 0:
                whole[name] = parameter.detach().cpu().clone().contiguous()
    return whole


def save(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    target: Path,
    moved: bool,
    first: Tensors | None = None,
    more: Callable[[Path | None], dict[str, str]] | None = None,
    origin: dict[str, Any] | None = None,
) -> None:
    """Write the adapter (PEFT format) or, in full fine-tuning, the model to ``target``, with tokenizer and template.

    Every rank must call it; rank 0 writes. ``moved``: whether a step has changed the weights by now (the first one of a
    warm-up has a learning rate of 0). ``first`` holds a PiSSA adapter's initial weights. ``more`` adds to the folder before it
    takes its name, and says the sha256 of what is large; it is called on every rank, with the folder on the one that writes.
    ``origin`` says what was trained on what (``models/identity.py``), for whoever uses the folder.

    Raises:
        RuntimeError: what was written is not what was trained (a tensor missing, not finite, or all zero).
        OSError: the disk; ``target`` is what it was before.
    """
    adapted = isinstance(model, peft.PeftModel)
    tensors = gather(model, trainable(model) if adapted else dict(model.named_parameters()))
    if dist.get_rank() != 0:
        if more is not None:
            more(None)
        dist.barrier()
        return
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise RuntimeError(f"{target.name} is not written: {name} is not finite")
    with files.staged_folder(target) as staging:
        if adapted:
            assert isinstance(model, peft.PeftModel)
            _write_adapter(model, tensors, staging, moved, first)
        else:
            assert isinstance(model, PreTrainedModel)
            model.config.use_cache = True  # off in training alone
            model.save_pretrained(staging, state_dict=tensors)
            model.config.use_cache = False
        tokenizer.save_pretrained(staging)
        if origin is not None:
            files.write_json(staging / base_identity.NAME, origin)
        known = {} if more is None else more(staging)
        manifest.seal(staging, known)
    dist.barrier()


def _write_adapter(model: peft.PeftModel, tensors: Tensors, folder: Path, moved: bool, first: Tensors | None) -> None:
    settings = model.peft_config["default"]
    state: Tensors = peft.get_peft_model_state_dict(model, state_dict=tensors)
    changes: dict[str, Any] = {"inference_mode": True}
    if first is not None:
        state = _plain_lora(state, peft.get_peft_model_state_dict(model, state_dict=first))
        changes |= {"init_lora_weights": True, "r": 2 * settings.r, "lora_alpha": 2 * settings.lora_alpha}
    save_file(state, folder / ADAPTER_FILE, metadata={"format": "pt"})
    kept = {name: getattr(settings, name) for name in changes}
    for name, value in changes.items():
        setattr(settings, name, value)
    try:
        settings.save_pretrained(str(folder))
    finally:
        for name, value in kept.items():
            setattr(settings, name, value)
    verify_adapter(folder / ADAPTER_FILE, {name: tuple(tensor.shape) for name, tensor in state.items()}, moved)


def _plain_lora(trained: Tensors, first: Tensors) -> Tensors:
    """A PiSSA adapter as plain LoRA of rank 2r on the published weights.

    PiSSA trains W - B0 A0 + B A (arXiv:2404.02948); so the update of W is B A - B0 A0 = [B, -B0] [A; A0].
    """
    state = {}
    for name, tensor in trained.items():
        if "lora_A" in name:
            state[name] = torch.cat([tensor, first[name]], dim=0)  # (2r, in)
        else:
            state[name] = torch.cat([tensor, -first[name]], dim=1)  # (out, 2r)
    return state


def verify_adapter(file: Path, expected: dict[str, tuple[int, ...]], moved: bool) -> None:
    """Reopen an adapter and hold it against what was trained. ZeRO-3 has been seen to save empty ones elsewhere.

    Raises:
        RuntimeError: names the first tensor that is wrong.
    """
    found = load_file(file)
    if not expected or set(found) != set(expected):
        raise RuntimeError(f"{file.name}: {len(found)} tensors were saved, {len(expected)} were trained")
    for name, tensor in found.items():
        if tuple(tensor.shape) != expected[name]:
            raise RuntimeError(f"{file.name}: {name} has shape {tuple(tensor.shape)}, trained was {expected[name]}")
        if not torch.isfinite(tensor).all():
            raise RuntimeError(f"{file.name}: {name} is not finite")
    if moved and not any(tensor.any() for name, tensor in found.items() if "lora_B" in name):
        raise RuntimeError(f"{file.name}: every B is zero, so the adapter would change nothing")


@torch.no_grad()
def write_probe(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, ids: list[int], folder: Path) -> None:
    """Leave ``probe.json`` beside the adapter: the trained model's own logits after one prompt.

    Whoever loads the adapter elsewhere can see with it that they have the same model. Every rank must call it.
    """
    device = next(model.parameters()).device
    model.eval()
    logits = model(input_ids=torch.tensor([ids], device=device)).logits[0, -1].float().cpu()  # (V,)
    if dist.get_rank() == 0:
        top = logits.topk(min(16, len(logits)))
        probe = {"input_ids": ids, "top_ids": top.indices.tolist(), "top_logits": top.values.tolist()}
        files.write_json(folder / "probe.json", probe)
