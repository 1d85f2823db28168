"""Loads a model and its adapter with Unsloth's kernels; the result is a peft model, and the rest of a run is unchanged.

Based on Unsloth's sources (2026.10.7). Not yet run on a GPU.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import peft
from transformers import BitsAndBytesConfig

from hydraft.config.lora import ALL_LINEAR
from hydraft.config.schema import Config
from hydraft.models import lora_targets, shapes
from hydraft.models.lora import targets
from hydraft.models.quant import DTYPES, bits_and_bytes
from hydraft.system import files


def load(config: Config) -> peft.PeftModel:
    """The base with a new adapter, on this rank's GPU."""
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
        use_exact_model_name=True,  # otherwise Unsloth may replace a name by that of weights quantised in advance
        fix_tokenizer=False,  # the tokenizer is prepared by load.py
        offload_embedding=False,
        use_gradient_checkpointing=config.train.recomputes,
        random_state=config.seed,
    )
    base.config.use_cache = False
    found = targets(config.lora, base)
    if isinstance(found, str) and found != ALL_LINEAR:  # it takes no regular expression
        found = sorted(lora_targets.matching(found, dict(base.named_modules())))
    adapted = _library().get_peft_model(
        base,
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        bias=config.lora.bias,
        target_modules=found,
        **config.lora.variant.peft,
        use_gradient_checkpointing=config.train.recomputes,
        random_state=config.seed,  # the same initial adapter on every rank
    )
    assert isinstance(adapted, peft.PeftModel)
    return adapted


def _library() -> Any:
    """``FastLanguageModel``. Its import patches transformers, peft and the Trainer, so only ranks may import it."""
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # it would download files from the hub for its statistics
    os.environ.setdefault(
        "UNSLOTH_COMPILE_LOCATION", str(files.cache_folder("unsloth"))
    )  # the default is the working directory
    with warnings.catch_warnings():
        # It warns if imported after transformers, whose classes it patches nevertheless.
        warnings.simplefilter("ignore")
        from unsloth import FastLanguageModel
    return FastLanguageModel


def _quantised(quantised: BitsAndBytesConfig | None) -> dict[str, BitsAndBytesConfig]:
    """The quantisation settings of ``kernels=torch``, so that the weights are stored alike."""
    return {} if quantised is None else {"quantization_config": quantised}


def _longest(config: Config) -> int:
    """The sequence length to allocate, at most the model's own: Unsloth scales rotary positions beyond it."""
    native = shapes.planned_config(config.model) or {}
    return min(config.data.max_length, int(native.get("max_position_embeddings", config.data.max_length)))
