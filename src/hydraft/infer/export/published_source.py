"""The published checkpoint that a model was converted from. No torch."""

import json
from pathlib import Path

from hydraft.config.choices import Rope
from hydraft.config.schema import load_config
from hydraft.errors import ConfigError
from hydraft.infer.source import Kind, Source
from hydraft.models.families.registry import PUBLISHED, published_config, published_family
from hydraft.models.loss import trains_head

HEAD_TRAINED = (
    "export.layout=published: lm_head was trained, and the published code would scale its rows to length 1: "
    "leave export.layout out"
)


def published_source(source: Source) -> Path:
    """The published checkpoint that a source's weights came from, whose own files the published layout needs.

    Raises:
        ConfigError: it is not there, its family cannot be exported in its published layout, or a head whose rows the published code
            scales was trained.
    """
    model = source.origin or source.model
    if source.model.rope is not Rope.none:
        raise ConfigError(
            f"export.layout=published: the published code has no place for model.rope={source.model.rope.value}: leave it out"
        )
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
    rules = family.rules(published_config(folder)).values()
    if any(part.unit_rows for rule in rules for part in rule.parts) and _trained_head(source):
        raise ConfigError(HEAD_TRAINED)
    return folder


def _trained_head(source: Source) -> bool:
    """Whether the head is known to have been trained, before anything is loaded."""
    if source.kind is Kind.adapter:
        settings = json.loads((source.folder / "adapter_config.json").read_text(encoding="utf-8"))
        return any(str(name).endswith("lm_head") for name in settings.get("target_modules") or ())
    return source.run is not None and trains_head(load_config(source.run / "config.yaml"))
