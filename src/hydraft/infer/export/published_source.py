"""The published checkpoint that a model was converted from. No torch."""

from pathlib import Path

from hydraft.errors import ConfigError
from hydraft.infer.source import Source
from hydraft.models.families.registry import PUBLISHED, published_family


def published_source(source: Source) -> Path:
    """The published checkpoint that a source's weights came from, whose own files the published layout needs.

    Raises:
        ConfigError: it is not there, or its family cannot be exported in its published layout.
    """
    model = source.origin or source.model
    folder = Path(model.path).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"export.layout=published: needs the published checkpoint in a folder, and {model.path} is not a folder: give base=<folder>"
        )
    family = published_family(folder)
    if family is None or not family.REVERSIBLE:
        reversible = ", ".join(model for each in PUBLISHED if each.REVERSIBLE for model in each.MODELS)
        raise ConfigError(
            f"export.layout=published: needs a published checkpoint of {reversible}, and {folder} is none: leave it out, or give base=<one>"
        )
    return folder
