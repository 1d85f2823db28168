"""Values in ``conf/data/`` that suit the shipped records, and no others. No torch."""

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, Node

from hydraft.config.data import DataConfig
from hydraft.system.source_tree import ROOT

RECORDS = tuple(ROOT / "data" / f"{name}.train.json" for name in ("zh_tasks", "zh_preferences"))
"""The shipped training records: the instruction set and the preference pairs."""

RESOLVER = "with_shipped"
"""The name in ``conf/``: ``max_length: ${with_shipped:256}``."""


def with_shipped(value: Any, _parent_: DictConfig, _node_: Node) -> Any:
    """``value`` while ``data.train`` is a shipped file; with other records, the schema's default of the same setting.

    A shipped held-out file suits only the training file of the same set.
    """
    train = Path(str(_parent_.train)).expanduser().resolve()
    held_out = str(value).endswith(".test.json")
    if train in [one.resolve() for one in RECORDS] and (not held_out or Path(value).stem[:-5] == train.stem[:-6]):
        return value
    return next(one.default for one in dataclasses.fields(DataConfig) if one.name == _node_._key())
