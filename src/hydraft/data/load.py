"""Reads the records of a source one by one; a bad record is reported with its file and number, or skipped. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hydraft.config.choices import Format, OnBadRecord
from hydraft.data.formats import conversation_of, form_of
from hydraft.data.reading.json_text import is_turns
from hydraft.data.reading.row import Row, broken_text
from hydraft.data.records import Read, Record
from hydraft.data.sources import Part, Source, place
from hydraft.errors import ConfigError

_NAMES = {type(None): "null", str: "text", list: "a list", int: "a number", float: "a number", bool: "true or false"}

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
        on_bad: OnBadRecord = OnBadRecord.refuse,
    ) -> None:
        """The arguments of ``load``."""
        self.source = Source(source, setting)
        self.form = form
        self.read = read or conversation_of
        self.on_bad = on_bad
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
        survey, forms = Survey(), _Forms(self.form)
        number = 0
        for part, row in self.source.rows():
            number += 1
            if row.remark:
                survey.remarks.setdefault(row.remark, []).append(number)
                del survey.remarks[row.remark][NAMED:]
            try:
                record = self._record(part, row, number, forms)
            except ConfigError as error:
                if self.on_bad is OnBadRecord.refuse:
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
        self._survey = survey

    @property
    def notes(self) -> list[str]:
        """What a user should know about how the source was read."""
        name, survey = self.source.name, self.survey
        lines = list(self.source.notes)
        for remark, numbers in survey.remarks.items():
            listed = ", ".join(map(str, numbers)) + (", …" if len(numbers) == NAMED else "")
            lines.append(f"{name}, record{'s' if len(numbers) > 1 else ''} {listed}: {remark}")
        if survey.bad:
            more = f"; and {survey.bad - NAMED:,} more" if survey.bad > NAMED else ""
            kept = f"{survey.bad:,} of {survey.bad + survey.count:,} records"
            lines.append(f"{name}: data.on_bad_record=skip: {kept} skipped: {'; '.join(survey.named)}{more}")
        return lines

    def _record(self, part: Part, row: Row, number: int, forms: "_Forms") -> Record:
        where = place(part, row, number)
        if row.fault:
            raise ConfigError(f"{where}: {row.fault}")
        value = row.value
        if is_turns(value):  # a record that is a list of messages and nothing else
            value = {"messages" if "role" in value[0] else "conversations": value}
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: must be an object, and is {_NAMES.get(type(value), type(value).__name__)}")
        record = self.read(value, forms.of(part, value, where, number), where, number)
        if row.broken and (wrong := broken_text(record.conversations)) is not None:
            raise ConfigError(f"{where}: {wrong}")
        return record


class _Forms:
    """The format of each part of a source: that of its first record that can be read."""

    def __init__(self, form: Format) -> None:
        self.form = form
        self.first: tuple[Part, Format, int] | None = None

    def of(self, part: Part, value: dict[str, Any], where: str, number: int) -> Format:
        """The format of a record.

        Raises:
            ConfigError: it has none, or another one than the records before it.
        """
        if self.form is not Format.auto:
            return self.form
        found = form_of(value, where)
        if self.first is None or self.first[0] is not part:
            self.first = part, found, number
        _, expected, at = self.first
        if found is not expected:
            raise ConfigError(
                f"{part.label}: record {at} is {expected.value} and record {number} is {found.value}; a file must have one format"
            )
        return found


def load(
    source: str,
    setting: str,
    form: Format = Format.auto,
    read: Read | None = None,
    on_bad: OnBadRecord = OnBadRecord.refuse,
) -> list[Record]:
    """Read all records of a source into memory.

    Args:
        source: files (see ``sources.py``), or a data set on the hub.
        setting: the setting that holds ``source``, for messages (``data.train``).
        form: the format of the records; ``auto`` recognises it by their keys.
        read: makes a record from an object in the file; by default ``conversation_of``.
        on_bad: whether a record that cannot be read ends it.

    Raises:
        ConfigError: the source is missing, unreadable or empty; or a record cannot be read, or has another format than the first.
    """
    return [record for record in Records(source, setting, form, read, on_bad)]  # noqa: C416 (list() asks for the length first)
