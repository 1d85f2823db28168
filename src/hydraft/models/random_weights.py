"""Writes a checkpoint of random weights in a model's real shape, one layer at a time: for tests and benchmarks."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, set_seed
from transformers.integrations import deepspeed

from hydraft.errors import ConfigError
from hydraft.models import shapes
from hydraft.models.architectures.register import register
from hydraft.models.convert import shards
from hydraft.models.families.base import Native
from hydraft.system.console import Bytes

SHARD = 2 << 30
"""The most bytes of a weight file."""


def write(shape: Native, tokenizer_folder: Path, tiny: bool, seed: int, target: Path, console: Console) -> None:
    """Write a bf16 checkpoint that ``from_pretrained`` loads to ``target``: weights, config and tokenizer.

    Modules are initialised one at a time by transformers' own code, so the peak memory is about that of the largest module.

    Raises:
        ConfigError: the disk has not enough space.
    """
    register()
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    if tiny:
        shape = shapes.tiny(shape, len(tokenizer))
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(**shape | ids | {"dtype": "bfloat16"})
    with torch.device("meta"), _unsharded():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    skipped = {"lm_head.weight"} if config.tie_word_embeddings else set()
    layout = {
        name: shards.Tensor("BF16", tuple(value.shape))
        for name, value in model.state_dict().items()
        if name not in skipped
    }
    total = sum(tensor.bytes for tensor in layout.values())
    if (free := shutil.disk_usage(target).free) < total:
        raise ConfigError(
            f"model.init=random: {total / 2**30:.1f} GiB of weights do not fit in {target.parent}, where "
            f"{free / 2**30:.1f} GiB are free: set HYDRAFT_CACHE to a folder on a larger disk"
        )
    files = list(_files(layout))
    set_seed(seed)
    bar = Bytes(console, "random weights", total)
    with bar.progress:
        values = _values(model, skipped)
        for number, names in enumerate(files, 1):
            part = {name: layout[name] for name in names}
            file = target / f"model-{number:05d}-of-{len(files):05d}.safetensors"
            shards.write(file, part, (next(values) for _ in names), bar.advance)
    placed = {
        name: f"model-{number:05d}-of-{len(files):05d}.safetensors"
        for number, names in enumerate(files, 1)
        for name in names
    }
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(target)
    GenerationConfig(**ids).save_pretrained(target)
    tokenizer.save_pretrained(target)


@contextmanager
def _unsharded() -> Iterator[None]:
    """Within, transformers does not shard what it makes, as it does in a rank under ZeRO-3: its peers may only wait for this file."""
    reference = deepspeed._hf_deepspeed_config_weak_ref
    active = None if reference is None else reference()
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if active is not None:
            deepspeed.set_hf_deepspeed_config(active)


def _files(layout: dict[str, shards.Tensor]) -> Iterator[list[str]]:
    """The tensor names of each file, in order."""
    names: list[str] = []
    size = 0
    for name, tensor in layout.items():
        if names and size + tensor.bytes > SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.bytes
    yield names


def _values(model: PreTrainedModel, skipped: set[str]) -> Iterator[torch.Tensor]:
    """The tensors of ``model.state_dict()`` in order; each module is initialised before and freed after its tensors."""
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if not own or f"{prefix}.weight" in skipped:
            continue
        module.to_empty(device="cpu", recurse=False)
        model._init_weights(module)
        for name in own:
            yield getattr(module, name).detach()
        module.to(device="meta")
