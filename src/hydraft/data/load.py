"""Reads the records of a source one by one; a bad record is reported with its file and number, or skipped. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from hydraft.config.choices import Format, OnBadRecord
from hydraft.data.named import DEFAULTS, RecordSettings
from hydraft.data.reading.row import Row, broken_text
from hydraft.data.record_reader import RecordReader
from hydraft.data.records import Read, Record
from hydraft.data.sources import Part, Source, place
from hydraft.errors import ConfigError

NAMED = 10
"""Bad records that are named when they are skipped; the others are counted."""


@dataclass
class Survey:
    """What reading a source from beginning to end found."""

    tasks: dict[str | None, int] = field(default_factory=dict)
    """Records of each task."""
    bad: int = 0
    """Records that were skipped."""
    named: list[str] = field(default_factory=list)
    """The first of them, each with the reason."""
    remarks: dict[str, list[int]] = field(default_factory=dict)
    """What is unusual and changes nothing: the numbers of the first records that have it."""
    notes: list[str] = field(default_factory=list)
    """Names that were guessed, and keys that look like content and are not read."""

    @property
    def count(self) -> int:
        """Records that can be trained or evaluated."""
        return sum(self.tasks.values())


class Records:
    """The records of a source, read anew on each iteration: they need not fit into memory.

    A record that is skipped keeps its number, so that skipping is the same in every process.
    """

    def __init__(
        self,
        source: str,
        setting: str,
        form: Format = Format.auto,
        read: Read | None = None,
        settings: RecordSettings = DEFAULTS,
    ) -> None:
        """The arguments of ``load``."""
        self.source = Source(source, setting)
        self.form = form
        self.read = read
        self.settings = settings
        self._survey: Survey | None = None

    @property
    def survey(self) -> Survey:
        """What is in the source, which is read once for it."""
        if self._survey is None:
            for _ in self:
                pass
        assert self._survey is not None
        return self._survey

    def __len__(self) -> int:
        return self.survey.count

    def __iter__(self) -> Iterator[Record]:
        survey, reader = Survey(), RecordReader(self.source.name, self.form, self.settings, self.read)
        number = 0
        for part, row in self.source.rows():
            number += 1
            if row.remark:
                survey.remarks.setdefault(row.remark, []).append(number)
                del survey.remarks[row.remark][NAMED:]
            try:
                record = _record(part, row, number, reader)
            except ConfigError as error:
                if self.settings.on_bad is OnBadRecord.refuse:
                    raise ConfigError(f"{error}; data.on_bad_record=skip skips such records") from None
                survey.bad += 1
                if len(survey.named) < NAMED:
                    survey.named.append(str(error).removeprefix(f"{self.source.name}, "))
                continue
            survey.tasks[record.task] = survey.tasks.get(record.task, 0) + 1
            yield record
        if number == 0:
            raise ConfigError(f"{self.source.name}: no records in it")
        if survey.bad == number:
            raise ConfigError(f"{self.source.name}: none of its {number:,} records can be read; {survey.named[0]}")
        survey.notes = reader.notes()
        self._survey = survey

    @property
    def notes(self) -> list[str]:
        """What a user should know about how the source was read."""
        name, survey = self.source.name, self.survey
        lines = [*self.source.notes, *survey.notes]
        for remark, numbers in survey.remarks.items():
            listed = ", ".join(map(str, numbers)) + (", …" if len(numbers) == NAMED else "")
            lines.append(f"{name}, record{'s' if len(numbers) > 1 else ''} {listed}: {remark}")
        if survey.bad:
            more = f"; and {survey.bad - NAMED:,} more" if survey.bad > NAMED else ""
            kept = f"{survey.bad:,} of {survey.bad + survey.count:,} records"
            lines.append(f"{name}: data.on_bad_record=skip: {kept} skipped: {'; '.join(survey.named)}{more}")
        return lines


def _record(part: Part, row: Row, number: int, reader: RecordReader) -> Record:
    where = place(part, row, number)
    if row.fault:
        raise ConfigError(f"{where}: {row.fault}")
    record = reader.record(row.value, where, number, part.label)
    if row.broken and (wrong := broken_text(record.conversations)) is not None:
        raise ConfigError(f"{where}: {wrong}")
    return record


def load(
    source: str,
    setting: str,
    form: Format = Format.auto,
    read: Read | None = None,
    settings: RecordSettings = DEFAULTS,
    notes: list[str] | None = None,
) -> list[Record]:
    """Read all records of a source into memory.

    Args:
        source: files (see ``sources.py``), or a data set on the hub.
        setting: the setting that holds ``source``, for messages (``data.train``).
        form: the format of the records; ``auto`` recognises it by their keys.
        read: makes a record from an object under the names of its format; by default ``formats.conversation_of``.
        settings: the other settings that say how records are read.
        notes: lines on how the records were read are added to it.

    Raises:
        ConfigError: the source is missing, unreadable or empty; or a record cannot be read, or has another format than the first.
    """
    records = Records(source, setting, form, read, settings)
    found = [record for record in records]  # noqa: C416 (list() asks for the length first)
    if notes is not None:
        notes += records.notes
    return found
