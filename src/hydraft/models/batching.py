"""Chooses padded batches for a model that does not keep the documents of one row apart. No torch."""

import dataclasses

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
            f"data.packing=true: in one row, documents of this model would see each other: {reason}: "
            "use data.packing=false data.batching=padded"
        )
    padded = dataclasses.replace(config, data=dataclasses.replace(config.data, batching=Batching.padded))
    return padded, [f"data.batching=padded: in one row, documents of this model would see each other: {reason}"]
