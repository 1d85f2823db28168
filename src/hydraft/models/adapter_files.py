"""The folder of a LoRA adapter in PEFT format: its settings and the shapes of its tensors, without its weights. No torch."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydraft.config.lora import ALL_LINEAR, LoraMethod, is_targets
from hydraft.errors import ConfigError

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
PICKLE = "adapter_model.bin"

IN_ANY_RUN = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "init_lora_weights", "lora_alpha",
        "lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "revision", "target_modules",
        "task_type", "use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "eva_config",
    }
)  # fmt: skip
"""Keys of adapter_config.json that a run has too, or that change nothing by themselves. Another one that is set is a feature of peft
that runs do not have."""

OVER_THE_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` with which the base keeps its weights (peft, tuners/lora/layer.py, reset_lora_parameters)."""


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter, as its files describe it."""

    folder: Path
    method: LoraMethod
    r: int
    alpha: float
    bias: str
    target_modules: list[str] | str
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    base: str
    """``base_model_name_or_path``; empty if it is not recorded."""
    shapes: Mapping[str, tuple[int, ...]] | None
    """Of its tensors; None if only its settings are on this machine."""

    @property
    def layers(self) -> set[str]:
        """Names of the layers that it adapts, as in its file."""
        found = (re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_A(?:\..+)?", name) for name in self.shapes or ())
        return {match[1] for match in found if match}


def read(folder: Path, said: str, with_weights: bool = True) -> AdapterFiles:
    """The adapter in ``folder``.

    Args:
        said: the override that named it, which begins each message.
        with_weights: False if its weights need not be there.

    Raises:
        ConfigError: it is incomplete, damaged, a pickle, empty, or has what no run trains.
    """
    settings = _settings(folder, said)
    method = _method(settings, said)
    shapes = _shapes(folder, said) if with_weights else None
    try:
        r, alpha, bias = int(settings["r"]), float(settings["lora_alpha"]), str(settings.get("bias", "none"))
        targets = settings["target_modules"]
        ranks, alphas = dict(settings.get("rank_pattern") or {}), dict(settings.get("alpha_pattern") or {})
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{said}: its {SETTINGS} has no r, lora_alpha or target_modules of LoRA") from None
    targets = [targets] if targets == ALL_LINEAR else targets
    if not is_targets(targets):
        raise ConfigError(
            f"{said}: its {SETTINGS} has target_modules={targets}, which is neither names nor an expression"
        )
    targets = sorted(targets) if isinstance(targets, list) else targets
    base = str(settings.get("base_model_name_or_path") or "")
    return AdapterFiles(folder, method, r, alpha, bias, targets, ranks, alphas, base, shapes)


def _settings(folder: Path, said: str) -> dict[str, Any]:
    try:
        settings = dict(json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        raise ConfigError(f"{said}: its {SETTINGS} is missing, or not that of an adapter") from None
    if settings.get("peft_type") != "LORA":
        raise ConfigError(
            f"{said}: its {SETTINGS} has peft_type={settings.get('peft_type')}; only LoRA can be trained on"
        )
    if settings.get("task_type") not in (None, "CAUSAL_LM"):
        raise ConfigError(f"{said}: it is for {settings['task_type']}, not for a language model (CAUSAL_LM)")
    return settings


def _method(settings: Mapping[str, Any], said: str) -> LoraMethod:
    initial = settings.get("init_lora_weights", True)
    if initial not in OVER_THE_BASE:
        raise ConfigError(
            f"{said}: it was saved with init_lora_weights={initial}, which fits a changed base only: convert it to plain LoRA with "
            "peft, save_pretrained(…, path_initial_model_for_weight_conversion=…)"
        )
    if more := next((key for key, value in settings.items() if value and key not in IN_ANY_RUN), None):
        raise ConfigError(
            f"{said}: it has {more}={settings[more]}, which no run starts from; merge it into its base instead"
        )
    dora, rslora = bool(settings.get("use_dora")), bool(settings.get("use_rslora"))
    if dora and rslora:
        raise ConfigError(f"{said}: it has use_dora and use_rslora together, and lora.method is one of them")
    return LoraMethod.dora if dora else LoraMethod.rslora if rslora else LoraMethod.lora


def _shapes(folder: Path, said: str) -> dict[str, tuple[int, ...]]:
    file = folder / WEIGHTS
    if not file.is_file():
        if (folder / PICKLE).is_file():
            raise ConfigError(
                f"{said}: {PICKLE} is a pickle, which may contain code, and is not opened; convert it to {WEIGHTS}"
            )
        raise ConfigError(f"{said}: no {WEIGHTS} in it")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:  # "pt" would import torch
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{said}: its {WEIGHTS} is cut off, or not safetensors ({error})") from None
    if empty := next((name for name, shape in shapes.items() if 0 in shape), None):
        raise ConfigError(f"{said}: {empty} in its {WEIGHTS} is empty: it was saved while its weights were sharded")
    if not any(".lora_A" in name for name in shapes):
        raise ConfigError(f"{said}: its {WEIGHTS} has no tensors of LoRA")
    return shapes
