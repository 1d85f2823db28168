"""Values in ``conf/data/`` that suit the shipped records, and no others. No torch."""

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, Node

from hydraft.config.data import DataConfig
from hydraft.system.source_tree import ROOT

RECORDS = ROOT / "data" / "zh_tasks.train.json"
"""The shipped training records."""

RESOLVER = "with_shipped"
"""The name in ``conf/``: ``max_length: ${with_shipped:256}``."""


def with_shipped(value: Any, _parent_: DictConfig, _node_: Node) -> Any:
    """``value`` while ``data.train`` is the shipped file; with other records, the schema's default of the same setting."""
    if Path(str(_parent_.train)).expanduser().resolve() == RECORDS.resolve():
        return value
    return next(one.default for one in dataclasses.fields(DataConfig) if one.name == _node_._key())
