"""Records which base an adapter belongs to, and verifies it when the adapter is used. No torch."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from hydraft.config.choices import Init
from hydraft.config.model import ModelConfig
from hydraft.config.schema import Config
from hydraft.models import shapes
from hydraft.system.version import __version__

NAME = "hydraft.json"
SAMPLE = 1 << 16
VOLATILE = ("transformers_version", "_name_or_path", "use_cache")
"""Keys of config.json that may change when a model is saved again."""


def of(config: Config) -> dict[str, Any]:
    """The contents of hydraft.json in the folder of an adapter or a trained model: its base, and the settings that its prompts need."""
    model = plain(config.model)
    return {
        "hydraft": __version__,
        "base": {
            "name": config.model.name,
            "path": config.model.path,
            "sha256": fingerprint(config.model, config.seed),
        },
        "model": model,
        "quant": {"kind": config.quant.kind.value, "double_quant": config.quant.double_quant},
        "precision": config.train.precision.value,
        "template": config.data.template,
        "thinking": config.data.thinking.value,
        "max_length": config.data.max_length,
        "seed": config.seed,
    }


def plain(model: ModelConfig) -> dict[str, Any]:
    """The model section as JSON values, with the chosen size only."""
    values = dataclasses.asdict(model)
    values["sizes"] = {size: shape for size, shape in values["sizes"].items() if size == model.size}
    return {key: getattr(value, "value", value) for key, value in values.items()}


def fingerprint(model: ModelConfig, seed: int) -> str | None:
    """A hash of the model of a section; None if it is not on this machine.

    It covers config.json, and the size and three samples of each weight file: enough to distinguish models of the same shape
    without reading all weights. Random weights are identified by their shape and seed.
    """
    if model.init is Init.random:
        shape = shapes.local_config(model) or (shapes.native_config(model.shape) if model.shape else None)
        return _hash([shape, model.scale.value, seed])
    folder = shapes.folder_of(model)
    if folder is None:
        return None
    kind = "*.safetensors" if any(folder.glob("*.safetensors")) else "*.bin"
    weights = sorted(folder.glob(kind))
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        known = {key: value for key, value in config.items() if key not in VOLATILE}
        return _hash([known, [sample(file) for file in weights]]) if weights else None
    except (OSError, ValueError, AttributeError):
        return None


def sample(file: Path) -> list[Any]:
    """A file's name and size, and a hash of its beginning, middle and end."""
    size = file.stat().st_size
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for start in sorted({0, max(0, size // 2), max(0, size - SAMPLE)}):
            stream.seek(start)
            digest.update(stream.read(SAMPLE))
    return [file.name, size, digest.hexdigest()]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
