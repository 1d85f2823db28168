"""Downloads checkpoints from the Hugging Face hub, into its own cache. No torch at module level."""

from pathlib import Path

from rich.console import Console

from hydraft.config.model import ModelConfig
from hydraft.errors import ConfigError
from hydraft.models import shapes
from hydraft.models.convert import shards

FILES = ["*.safetensors", "*.bin", "*.json", "*.jinja", "tokenizer.model", "tokenization_*.py"]
"""The files of a hub checkpoint that a conversion needs."""

SMALL = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
"""The files that transformers may need besides the weights."""

ELSEWHERE = ["*/*.json", "*/*.model", "*/*.txt"]
"""Copies of a checkpoint in other formats have folders of their own (``original/``, ``onnx/``)."""


def config(model: ModelConfig) -> Path | None:
    """The config.json of a hub model, from the hub's cache or downloaded."""
    from huggingface_hub import hf_hub_download

    for cached_only in (True, False):
        try:
            return Path(
                hf_hub_download(model.path, "config.json", revision=model.revision, local_files_only=cached_only)
            )
        except Exception:
            continue
    return None


def download(
    model: ModelConfig, console: Console, files: list[str] = FILES, leave_out: list[str] | None = None
) -> Path:
    """The folder of a hub model with ``files``, downloaded as far as they are missing.

    Raises:
        ConfigError: they are not available.
    """
    from huggingface_hub import snapshot_download

    console.print(f"{model.path}: downloading", highlight=False, soft_wrap=True)
    try:
        return Path(
            snapshot_download(model.path, revision=model.revision, allow_patterns=files, ignore_patterns=leave_out)
        )
    except Exception as error:  # huggingface_hub raises many classes
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"model.path={model.path}: could not be downloaded from the hub ({reason})") from error


def whole(model: ModelConfig, console: Console) -> Path:
    """The folder of a hub model with what ``from_pretrained`` reads of it, downloaded as far as it is missing.

    Raises:
        ConfigError: it is not available.
    """
    found = shapes.hub_snapshot(model)
    if found is not None and shards.complete(found) and (found / "tokenizer_config.json").is_file():
        return found
    folder = download(model, console, SMALL, ELSEWHERE)
    index = folder / shards.INDEXES[0]
    weights = set(shards.weight_map(index).values()) if index.is_file() else {shards.SINGLES[0]}
    return download(model, console, sorted(weights))


def files(name: str, wanted: list[str]) -> Path:
    """The folder of ``wanted`` files of the repository ``name`` in the hub's cache; they are downloaded as far as they are missing.

    Raises:
        ConfigError: the repository is not available. One without these files is no error.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # huggingface_hub raises many classes
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{name} could not be downloaded from the hub ({reason})") from error
