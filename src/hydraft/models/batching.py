"""Chooses padded batches for a model that does not keep the documents of one row apart, and says what they share. No torch."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hydraft.config.choices import Batching
from hydraft.config.schema import Config
from hydraft.errors import ConfigError


def settle(config: Config, reason: str | None) -> tuple[Config, list[str]]:
    """The config with padded batches if the model needs them, and a line about that.

    Args:
        reason: why the model does not keep documents apart (``row_documents``); None if it does, or if that is not known yet.

    Raises:
        ConfigError: the run packs documents into rows.
    """
    if reason is None or config.data.batching is Batching.padded:
        return config, []
    if config.data.packing:
        raise ConfigError(
            f"data.packing=true: in one row, documents of this model may see each other: {reason}: use data.packing=false"
        )
    padded = dataclasses.replace(config, data=dataclasses.replace(config.data, batching=Batching.padded))
    return padded, [f"data.batching=padded: in one row, documents of this model may see each other: {reason}"]


def shared_positions(config: Config, native: Mapping[str, Any]) -> list[str]:
    """A line for a model whose rotary frequencies depend on the longest record of a batch, if records may be so long.

    transformers chooses them for a whole batch by its largest position (``dynamic_rope_update`` of modeling_rope_utils.py).
    """
    several = config.data.packing or config.train.micro_batch_size * config.objective.requirements.sequences > 1
    text = native.get("text_config")
    known = {**native, **text} if isinstance(text, Mapping) else native
    rope = known.get("rope_parameters") or known.get("rope_scaling") or {}
    kind = str(rope.get("rope_type") or rope.get("type"))
    limit = rope.get("original_max_position_embeddings") or known.get("original_max_position_embeddings")
    if kind == "dynamic":
        limit = limit or known.get("max_position_embeddings")
    if (
        not several
        or limit is None
        or not (kind in ("longrope", "su") or "dynamic" in kind)
        or config.data.max_length <= limit
    ):
        return []
    return [
        f"rope_type={kind}: in a batch with a record of more than {limit:,} tokens, all records get its rotary frequencies: "
        f"data.max_length={limit}, or train.micro_batch_size=1 data.packing=false, keeps them as they are alone"
    ]
