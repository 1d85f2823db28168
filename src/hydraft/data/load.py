"""Reads data sources into records; an invalid record is reported with its file and number. No torch at module level."""

from hydraft.config.choices import Format
from hydraft.data.named import DEFAULTS, RecordSettings
from hydraft.data.record_reader import RecordReader
from hydraft.data.records import Read, Record
from hydraft.data.sources import read_objects
from hydraft.errors import ConfigError


def load(
    source: str,
    setting: str,
    form: Format = Format.auto,
    read: Read | None = None,
    settings: RecordSettings = DEFAULTS,
    notes: list[str] | None = None,
) -> list[Record]:
    """Read the records of a ``.json`` list, a ``.jsonl`` or ``.parquet`` file, or a data set on the hub.

    Args:
        source: path, or hub name (``owner/name``, or ``owner/name:split``; the default split is ``train``).
        setting: the setting that holds ``source``, for messages (``data.train``).
        form: the format of the records; ``auto`` recognises it by their keys.
        read: makes a record from an object under the names of its format; by default ``conversation_of``.
        settings: the other settings that say how records are read.
        notes: lines on how the records were read are added to it.

    Raises:
        ConfigError: the source is missing, unreadable or empty; its records have no known format or different formats; or a
            record has no answer or an unknown role.
    """
    name = f"{setting}={source}"
    found = read_objects(source, name)
    if not found:
        raise ConfigError(f"{name}: no records in it")
    reader = RecordReader(name, form, settings, read)
    records = [reader.record(values, f"{name}, record {number}", number) for number, values in enumerate(found, 1)]
    said = reader.notes()
    if notes is not None:
        notes += said
    return records
