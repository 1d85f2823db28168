"""Saves the trained adapter or model atomically, and reads an adapter back to verify it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import peft
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hydraft.checkpoint import manifest
from hydraft.models import base_identity, lora_init
from hydraft.system import files

Tensors = dict[str, torch.Tensor]
ADAPTER_FILE = "adapter_model.safetensors"


def gather(model: torch.nn.Module, parameters: dict[str, torch.nn.Parameter]) -> Tensors:
    """Copies of ``parameters`` in main memory on rank 0. The other ranks must call it too, and get an empty dict.

    Under ZeRO-3, shards are gathered one parameter at a time, so that no more than one is whole on a GPU.
    """
    whole: Tensors = {}
    for name, parameter in parameters.items():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            if dist.get_rank() == 0:
                whole[name] = parameter.detach().cpu().clone().contiguous()
    return whole


@dataclass(frozen=True)
class Origin:
    """Where the saved weights come from; the same for every save of a run."""

    initial: Tensors | None = None
    """The initial weights of an adapter that changed the base's weights (PiSSA, OLoRA), on rank 0."""
    base: dict[str, Any] | None = None
    """The base model and the settings (``models/base_identity.py``), on rank 0."""


def save(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    target: Path,
    updated: bool,
    origin: Origin | None = None,
    more: Callable[[Path | None], dict[str, str]] | None = None,
) -> None:
    """Write the adapter (PEFT format) or, in full fine-tuning, the model to ``target``, with tokenizer and chat template.

    Every rank must call it; rank 0 writes.

    Args:
        updated: whether a step has changed the weights (with a warm-up, the first step has a learning rate of 0).
        more: called on every rank before the folder gets its name, with the folder on rank 0 and None on others. It may add files,
            and returns the sha256 of large ones.

    Raises:
        RuntimeError: the written weights differ from the trained ones (a tensor is missing, not finite, or all zero).
        OSError: the folder could not be written; ``target`` is unchanged.
    """
    adapted, origin = isinstance(model, peft.PeftModel), origin or Origin()
    tensors = gather(model, lora_init.saved(model) if adapted else dict(model.named_parameters()))
    subtracted = lora_init.first(model) if adapted else None
    initial = origin.initial if subtracted is None else gather(model, subtracted)
    if dist.get_rank() != 0:
        if more is not None:
            more(None)
        dist.barrier()
        return
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise RuntimeError(f"{target.name} is not written: {name} is not finite")
    with files.staged_folder(target, manifest.listed) as staging:  # a person's own files in it are kept
        if adapted:
            assert isinstance(model, peft.PeftModel)
            _write_adapter(model, tensors, staging, updated, initial)
        else:
            assert isinstance(model, PreTrainedModel)
            model.config.use_cache = True  # off only in training
            model.save_pretrained(staging, state_dict=tensors)
            model.config.use_cache = False
        tokenizer.save_pretrained(staging)
        if origin.base is not None:
            files.write_json(staging / base_identity.NAME, origin.base)
        known = {} if more is None else more(staging)
        manifest.seal(staging, known)
    dist.barrier()


def _write_adapter(
    model: peft.PeftModel, tensors: Tensors, folder: Path, updated: bool, initial: Tensors | None
) -> None:
    settings: Any = model.peft_config["default"]
    state: Tensors = peft.get_peft_model_state_dict(model, state_dict=tensors)
    changes: dict[str, Any] = {"inference_mode": True}
    if isinstance(
        settings, peft.LoraConfig
    ):  # its first weights are in the past: another model must not compute them again
        changes |= {"init_lora_weights": True, "eva_config": None}
    if initial is not None:
        state = _plain_lora(state, peft.get_peft_model_state_dict(model, state_dict=initial))
        changes |= {
            name: _twice(getattr(settings, name)) for name in ("r", "lora_alpha", "rank_pattern", "alpha_pattern")
        }
    save_file(state, folder / ADAPTER_FILE, metadata={"format": "pt"})
    kept = {name: getattr(settings, name) for name in changes}
    for name, value in changes.items():
        setattr(settings, name, value)
    try:
        settings.save_pretrained(str(folder))
    finally:
        for name, value in kept.items():
            setattr(settings, name, value)
    verify_adapter(folder / ADAPTER_FILE, {name: tuple(tensor.shape) for name, tensor in state.items()}, updated)


def _twice(value: Any) -> Any:
    return {name: 2 * one for name, one in value.items()} if isinstance(value, dict) else 2 * value


def _plain_lora(trained: Tensors, initial: Tensors) -> Tensors:
    """An adapter of PiSSA or OLoRA as a LoRA adapter of rank 2r on the original weights.

    They train W - B0 A0 + B A (arXiv:2404.02948); so the update of W is B A - B0 A0 = [B, -B0] [A; A0].
    """
    state = {}
    for name, tensor in trained.items():
        if "lora_A" in name:
            state[name] = torch.cat([tensor, initial[name]], dim=0)  # (2r, in)
        elif "lora_B" not in name:  # a bias
            state[name] = tensor
        else:
            state[name] = torch.cat([tensor, -initial[name]], dim=1)  # (out, 2r)
    return state


def verify_adapter(file: Path, expected: dict[str, tuple[int, ...]], updated: bool) -> None:
    """Read a saved adapter and compare it with the trained one; under ZeRO-3, an adapter may be saved with empty tensors.

    Raises:
        RuntimeError: names the first wrong tensor.
    """
    found = load_file(file)
    if not expected or set(found) != set(expected):
        raise RuntimeError(f"{file.name}: {len(found)} tensors were saved, {len(expected)} were trained")
    for name, tensor in found.items():
        if tuple(tensor.shape) != expected[name]:
            raise RuntimeError(f"{file.name}: {name} has shape {tuple(tensor.shape)}, but {expected[name]} was trained")
        if not torch.isfinite(tensor).all():
            raise RuntimeError(f"{file.name}: {name} is not finite")
    if updated and not any(tensor.any() for name, tensor in found.items() if "lora_B" in name or "lambda_b" in name):
        raise RuntimeError(f"{file.name}: every B is zero, so the adapter has no effect")


@torch.no_grad()
def write_probe(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, ids: list[int], folder: Path | None
) -> None:
    """Write ``probe.json`` beside the adapter: the logits of the trained model after one prompt.

    With it, one can verify that a loaded adapter gives the same model. Every rank must call it; rank 0 writes.
    """
    device, training = next(model.parameters()).device, model.training
    model.eval()
    logits = model(input_ids=torch.tensor([ids], device=device)).logits[0, -1].float().cpu()  # (V,)
    model.train(training)
    if dist.get_rank() == 0 and folder is not None:
        top = logits.topk(min(16, len(logits)))
        probe = {"input_ids": ids, "top_ids": top.indices.tolist(), "top_logits": top.values.tolist()}
        files.write_json(folder / "probe.json", probe)
