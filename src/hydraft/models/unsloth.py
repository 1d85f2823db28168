"""Unsloth loads and adapts a model with kernels of its own; what comes back is peft's, and all else of a run is as with plain torch.

Written from Unsloth's sources (2026.10.7). Not yet run on a GPU.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import peft
from transformers import BitsAndBytesConfig

from hydraft.config.choices import LoraMethod
from hydraft.config.schema import Config
from hydraft.models import shapes
from hydraft.models.families.registry import native_targets
from hydraft.models.quant import DTYPES, bits_and_bytes
from hydraft.system import files


def load(config: Config) -> peft.PeftModel:
    """The base with a fresh adapter on it, on this rank's card."""
    kept = config.model.kept_in(config.train.precision)
    quantised = bits_and_bytes(config.quant, kept)
    base, _ = _library().from_pretrained(
        model_name=str(Path(config.model.path).expanduser()),
        max_seq_length=_longest(config),
        dtype=DTYPES[kept],
        load_in_4bit=quantised is not None,
        load_in_16bit=quantised is None,
        **_quantised(quantised),
        device_map={"": f"cuda:{os.environ.get('LOCAL_RANK', 0)}"},
        revision=config.model.revision,
        trust_remote_code=config.model.trust_remote_code,
        use_exact_model_name=True,  # else a name may stand for other weights, quantised beforehand
        fix_tokenizer=False,  # ours has been looked at
        offload_embedding=False,
        use_gradient_checkpointing=config.train.recomputes,
        random_state=config.seed,
    )
    base.config.use_cache = False
    targets = native_targets(config.lora.target_modules, dict(base.named_modules()))
    adapted = _library().get_peft_model(
        base,
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        bias=config.lora.bias,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        use_rslora=config.lora.method is LoraMethod.rslora,
        use_dora=config.lora.method is LoraMethod.dora,
        use_gradient_checkpointing=config.train.recomputes,
        random_state=config.seed,  # the same first weights on every rank
    )
    assert isinstance(adapted, peft.PeftModel)
    return adapted


def _library() -> Any:
    """``FastLanguageModel``. Importing it changes transformers, peft and the Trainer in place: no process but a rank may."""
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # it would ask the hub for files, to be counted
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(files.cache_folder("unsloth")))  # the working directory, else
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # it would like to be imported first; classes that are there already, it changes too
        from unsloth import FastLanguageModel
    return FastLanguageModel


def _quantised(quantised: BitsAndBytesConfig | None) -> dict[str, BitsAndBytesConfig]:
    """Our own settings, so that the weights are stored as with ``kernels=torch``."""
    return {} if quantised is None else {"quantization_config": quantised}


def _longest(config: Config) -> int:
    """Positions to make room for. Beyond a model's own it would stretch its rotary positions."""
    native = shapes.planned_config(config.model) or {}
    return min(config.data.max_length, int(native.get("max_position_embeddings", config.data.max_length)))
