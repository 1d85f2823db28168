"""Reads data sources into records; an invalid record is reported with its file and number. No torch at module level.

``id`` is optional and must be unique.
"""

from typing import Any

from hydraft.config.choices import Format
from hydraft.data.formats import conversation_of, form_of
from hydraft.data.records import Read, Record
from hydraft.data.sources import read_objects
from hydraft.errors import ConfigError


def load(source: str, setting: str, form: Format = Format.auto, read: Read | None = None) -> list[Record]:
    """Read the records of a ``.json`` list, a ``.jsonl`` or ``.parquet`` file, or a data set on the hub.

    Args:
        source: path, or hub name (``owner/name``, or ``owner/name:split``; the default split is ``train``).
        setting: the setting that holds ``source``, for messages (``data.train``).
        form: the format of the records; ``auto`` recognises it by their keys.
        read: makes a record from an object in the file; by default ``conversation_of``.

    Raises:
        ConfigError: the source is missing, unreadable or empty; its records have no known format or different formats; or a
            record has no answer, an unknown role or the id of another record.
    """
    name = f"{setting}={source}"
    found = read_objects(source, name)
    if not found:
        raise ConfigError(f"{name}: no records in it")
    forms: dict[Format, int] = {}
    seen: dict[Any, int] = {}
    records = []
    for number, record in enumerate(found, 1):
        place = f"{name}, record {number}"
        if not isinstance(record, dict):
            raise ConfigError(f"{place}: must be an object, and is a {type(record).__name__}")
        known = form_of(record, place) if form is Format.auto else form
        forms.setdefault(known, number)
        if len(forms) > 1:
            different = " and ".join(f"record {at} is {other.value}" for other, at in forms.items())
            raise ConfigError(f"{name}: {different}; a file must have one format")
        identity = record.get("id")
        if identity is not None and seen.setdefault(str(identity), number) != number:
            raise ConfigError(f"{place}: has the id of record {seen[str(identity)]} ({identity})")
        records.append((read or conversation_of)(record, known, place, number))
    return records
