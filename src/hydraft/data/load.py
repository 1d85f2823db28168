"""Reads data sources into records; an invalid record is reported with its file and number. No torch at module level."""

from hydraft.config.choices import Format
from hydraft.data.columns import NO_COLUMNS, Columns
from hydraft.data.reading import Reading
from hydraft.data.records import Read, Record
from hydraft.data.sources import read_objects
from hydraft.errors import ConfigError


def load(
    source: str,
    setting: str,
    form: Format = Format.auto,
    read: Read | None = None,
    columns: Columns = NO_COLUMNS,
    template: str = "chat",
    notes: list[str] | None = None,
) -> list[Record]:
    """Read the records of a ``.json`` list, a ``.jsonl`` or ``.parquet`` file, or a data set on the hub.

    Args:
        source: path, or hub name (``owner/name``, or ``owner/name:split``; the default split is ``train``).
        setting: the setting that holds ``source``, for messages (``data.train``).
        form: the format of the records; ``auto`` recognises it by their keys.
        read: makes a record from an object under the names of its format; by default ``conversation_of``.
        columns: the settings ``data.columns`` and ``data.labels``.
        template: ``data.template``.
        notes: lines on how the records were read are added to it.

    Raises:
        ConfigError: the source is missing, unreadable or empty; its records have no known format or different formats; or a
            record has no answer or an unknown role.
    """
    name = f"{setting}={source}"
    found = read_objects(source, name)
    if not found:
        raise ConfigError(f"{name}: no records in it")
    reading = Reading(name, form, columns, template, read)
    records = [reading.record(values, f"{name}, record {number}", number) for number, values in enumerate(found, 1)]
    said = reading.notes()
    if notes is not None:
        notes += said
    return records
