"""Prompts that the chat page offers: of the held-out records of the runs that are served. No torch."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hydraft.config.schema import load_config
from hydraft.data import mixture
from hydraft.data.records import Record
from hydraft.errors import ConfigError
from hydraft.training.objectives.registry import make_objective

if TYPE_CHECKING:
    from hydraft.infer.load import LoadedModel

COUNT, LONGEST = 3, 200
"""Prompts on the page, and characters of one."""


def prompts(loaded: "LoadedModel") -> list[str]:
    """At most three prompts of a single turn, of different tasks where the records have tasks; none if the records are gone."""
    found: list[str] = []
    for run in dict.fromkeys(one.source.run for one in loaded.sources.values() if one.source.run is not None):
        with suppress(ConfigError, OSError, ValueError):
            found += [text for text in _of_run(run) if text not in found]
    return found[:COUNT]


def _of_run(run: Path) -> list[str]:
    config = load_config(run / "config.yaml")
    if config.data.eval is None:
        return []
    chosen: dict[str, list[str]] = {}
    for record in mixture.held_out(config.data, config.seed, make_objective(config.objective).read):
        text = _prompt(record)
        if text is not None:
            chosen.setdefault(record.task or "", []).append(text)
    rows = max(map(len, chosen.values()), default=0)
    return [texts[row] for row in range(min(COUNT, rows)) for texts in chosen.values() if row < len(texts)][:COUNT]


def _prompt(record: Record) -> str | None:
    """The one message of a user; None for a record with others, or a long one."""
    conversation = record.conversations[0]
    if conversation.plain is not None or conversation.tools or [turn.role for turn in conversation.prompt] != ["user"]:
        return None
    text = conversation.prompt[0].text.strip()
    return text if 0 < len(text) <= LONGEST else None
