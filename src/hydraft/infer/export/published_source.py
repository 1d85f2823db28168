"""The published checkpoint that a model was converted from. No torch."""

from pathlib import Path

from hydraft.errors import ConfigError
from hydraft.infer.source import Source
from hydraft.models.families import chatglm2
from hydraft.models.families.registry import published_config


def published_source(source: Source) -> Path:
    """The published checkpoint that a source's weights came from, whose own files the published layout needs.

    Raises:
        ConfigError: it is not there, or its family has no way back.
    """
    model = source.origin or source.model
    folder = Path(model.path).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"export.layout=published: needs the published checkpoint in a folder, and {model.path} is none: give base=<it>"
        )
    if not chatglm2.recognises(published_config(folder)):
        raise ConfigError(
            f"export.layout=published: is for ChatGLM2, and {folder} is no published checkpoint of it: leave it away, or give base=<one>"
        )
    return folder
