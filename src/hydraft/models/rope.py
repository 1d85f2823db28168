"""Scaled rotary positions (``model.rope``), as transformers describes them in a config. No torch.

yarn interpolates low frequencies only and scales the attention (arXiv:2309.00071), linear divides all positions (arXiv:2306.15595); both
change every record. dynamic changes the base of the frequencies once a batch has a record beyond the original length, and by how much
depends on that record.
"""

import math
from collections.abc import Mapping
from typing import Any

from hydraft.config.choices import Rope
from hydraft.config.model import ModelConfig
from hydraft.errors import ConfigError
from hydraft.models.families.registry import native_family


def changes(model: ModelConfig, known: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json, or of its text model, that the section changes, with their new values.

    A checkpoint that was trained so has them already. ``max_position_embeddings`` is the new limit; with ``dynamic`` it stays, since
    transformers scales beyond it.

    Raises:
        ConfigError: the model has no rotary positions, or scales them already.
    """
    if model.rope is Rope.none:
        return {}
    wanted: dict[str, Any] = {"rope_type": model.rope.value, "factor": model.rope_factor}
    own, length = parameters(known), known.get("max_position_embeddings")
    if own is None or length is None:
        raise ConfigError(
            f"model.rope={model.rope.value}: {model.path} has no rotary positions to scale: use model.rope=none"
        )
    if any(isinstance(each, Mapping) for each in own.values()):
        raise ConfigError(
            f"model.rope={model.rope.value}: the layers of {model.path} have rotary positions of several kinds: use model.rope=none"
        )
    kind = str(own.get("rope_type") or own.get("type") or "default")
    if wanted.items() <= own.items():
        return {}
    if kind != "default":
        raise ConfigError(
            f"model.rope={model.rope.value}: {model.path} scales its rotary positions already (rope_type={kind}, for "
            f"{length:,} tokens): use model.rope=none"
        )
    if model.rope is Rope.dynamic:
        return {"rope_parameters": {**own, **wanted}}
    if model.rope is Rope.yarn:
        wanted["original_max_position_embeddings"] = length
    return {"rope_parameters": {**own, **wanted}, "max_position_embeddings": round(length * model.rope_factor)}


def parameters(known: Mapping[str, Any]) -> dict[str, Any] | None:
    """The rotary positions of a config, under the names of transformers 5; None for a model without any."""
    family = native_family(str(known.get("model_type")))
    if family is not None and family.alibi:
        return None
    own = dict(known.get("rope_parameters") or known.get("rope_scaling") or {})
    theta = own.get("rope_theta", known.get("rope_theta"))
    if not own and theta is None:
        return None
    return own | ({} if theta is None else {"rope_theta": theta})


def notes(model: ModelConfig, longest: int, known: Mapping[str, Any]) -> list[str]:
    """A line about records of up to ``longest`` tokens that are longer than a model, with its rotary positions scaled or not, is for."""
    length = known.get("max_position_embeddings")
    if length is None:
        return []
    trained = round(length / model.rope_factor) if model.rope in (Rope.yarn, Rope.linear) else length
    limit = round(trained * model.rope_factor)
    if longest <= limit:
        return []
    scaled = (
        model.rope is not Rope.none
        or (parameters(known) or {"rope_type": None}).get("rope_type", "default") == "default"
    )
    how = f", or model.rope={_named(model)} model.rope_factor={math.ceil(longest / trained)}" if scaled else ""
    return [f"data.max_length={longest}: the model is for records of up to {limit:,} tokens: give at most that{how}"]


def _named(model: ModelConfig) -> str:
    return str((Rope.yarn if model.rope is Rope.none else model.rope).value)
