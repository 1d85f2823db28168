"""Checkpoints of ModelScope (modelscope.cn), which its own package downloads: ``model.hub=modelscope``. No torch.

The package decides where it keeps them, which has changed between its versions. So the folder of each download is recorded in the
cache, where plans and later runs find it without the package or the network.
"""

import dataclasses
import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from hydraft.config.choices import Hub, Init
from hydraft.config.model import ModelConfig
from hydraft.config.rules import NO_MODELSCOPE
from hydraft.errors import ConfigError
from hydraft.models.convert import shards
from hydraft.models.families.registry import published_family
from hydraft.system import cache_entries, files

DEFAULT_BRANCH = "master"
"""Where Hugging Face has ``main``."""
SMALL = ["*.json", "*.model", "*.txt", "*.tiktoken", "*.jinja", "*.py"]
"""The files of a checkpoint besides its weights."""


def needed(model: ModelConfig) -> bool:
    """Whether the weights of a section are on ModelScope: not those of a folder, nor random ones."""
    return model.hub is Hub.modelscope and model.init is Init.pretrained and not Path(model.path).expanduser().is_dir()


def recorded(model: ModelConfig) -> Path | None:
    """The folder of an earlier download of this model and revision; None if there was none, or it is gone."""
    try:
        folder = Path(json.loads(_record(model).read_text(encoding="utf-8"))["folder"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if (folder / "config.json").is_file() else None


def local(model: ModelConfig, console: Console, weights: bool = True) -> ModelConfig:
    """The section with the folder of its checkpoint, which is downloaded if needed; ``weights``: not only the other files.

    Raises:
        ConfigError: the package is not installed, or the checkpoint is not available.
    """
    if not needed(model):
        return model
    record = _record(model)
    with cache_entries.locked(record):
        folder = recorded(model)
        if folder is None:
            folder = _download(model, SMALL, console)
            if record.is_dir():
                cache_entries.remove(record)
            files.write_json(record, {"folder": str(folder)})
        if weights and not shards.complete(folder):
            _download(model, [*SMALL, "*.safetensors"], console)
            if not shards.complete(folder) and published_family(folder) is not None:  # conversions read pickles safely
                _download(model, [*SMALL, "*.bin"], console)
    return dataclasses.replace(model, path=str(folder), revision=None)


def _download(model: ModelConfig, patterns: list[str], console: Console) -> Path:
    """Download the files that match ``patterns``; those that are in the package's cache are not downloaded again."""
    if find_spec("modelscope") is None:  # a run is refused by config/rules.py; this is for what is made of one
        raise ConfigError(NO_MODELSCOPE)
    from modelscope import snapshot_download

    console.print(f"{model.path}: downloading from ModelScope", highlight=False, soft_wrap=True)
    try:
        found = snapshot_download(model.path, revision=model.revision or DEFAULT_BRANCH, allow_patterns=patterns)
    except Exception as error:  # the package raises many classes
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"model.path={model.path}: could not be downloaded from ModelScope ({reason})") from error
    folder = Path(found)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model.path={model.path}: no model on ModelScope (no config.json in {folder})")
    return folder


def _record(model: ModelConfig) -> Path:
    key: list[Any] = [model.path, model.revision or DEFAULT_BRANCH]
    name = f"{model.path.replace('/', '--')}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"
    return files.cache_folder("modelscope") / f"{name}.json"
