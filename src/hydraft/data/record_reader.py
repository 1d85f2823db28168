"""Reads the objects of one source as records, and collects what has to be said about it once. No torch."""

from collections.abc import Iterator, Mapping
from typing import Any

from hydraft.config.choices import Format, TrainOn
from hydraft.config.template import lacks_input
from hydraft.data import keys
from hydraft.data.chat_turns import TURN_KEYS, looks_like_turns
from hydraft.data.column_names import EXACT
from hydraft.data.columns import recognise
from hydraft.data.formats import conversation_of
from hydraft.data.named import DEFAULTS, Named, RecordSettings
from hydraft.data.reading.row import printable
from hydraft.data.records import Read, Record
from hydraft.data.texts import kind_of
from hydraft.errors import ConfigError

READ_ELSEWHERE = frozenset(("task", "id", "chat_template_kwargs"))


class RecordReader:
    """How the objects of one source are read. ``record`` makes a record of each; ``notes`` says what was guessed or not read."""

    def __init__(
        self,
        name: str,
        form: Format = Format.auto,
        settings: RecordSettings = DEFAULTS,
        read: Read | None = None,
        answered: bool = True,
    ) -> None:
        """Create one for a source.

        Args:
            name: the source, for the notes.
            form: the format of the records; ``auto`` recognises it by their keys.
            settings: the other settings that say how records are read.
            read: makes a record from an object under the names of its format; by default ``conversation_of``.
            answered: whether a record must have an answer; otherwise a question is enough.
        """
        self.name, self.form, self.settings, self.answered = name, form, settings, answered
        self.read = read or conversation_of
        self._forms: dict[str, tuple[Format, int]] = {}
        self._guessed: dict[str, None] = {}
        self._unread: dict[str, None] = {}
        self._seen: set[str] = set()
        self._records = 0

    def record(self, values: Any, place: str, number: int = 0, file: str = "") -> Record:
        """The record that an object of the source is.

        Args:
            place: names it in messages.
            number: its number in the source, from 1.
            file: the file of the source that it is in; the records of a file have one format.

        Raises:
            ConfigError: it cannot be read, which is the fault of this one record.
        """
        try:
            return self._record(values, place, number, file)
        except ConfigError as error:
            raise ConfigError(printable(str(error))) from None

    def _record(self, values: Any, place: str, number: int, file: str) -> Record:
        if isinstance(values, list) and looks_like_turns(values):
            values = {"messages": values}
        if not isinstance(values, dict):
            raise ConfigError(f"{place}: must be an object, and is {kind_of(values)}")
        form, named = recognise(values, place, self.form, self.settings, self.answered)
        first, at = self._forms.get(file, (form, number))
        if form is not first:
            raise ConfigError(
                f"{place}: record {at} is {first.value} and record {number} is {form.value}; a file must have one format"
            )
        found = self.read(named, form, place, number)
        self._check_settings(found, place, named)
        self._forms.setdefault(file, (form, number))
        self._records += 1
        self._note(form, named, found)
        return found

    def notes(self) -> list[str]:
        """One line each on the names that were guessed and on the keys that look like content and were not read.

        Raises:
            ConfigError: ``data.columns`` names a key that no record has.
        """
        for name, key in self.settings.columns.items():
            if self._records and key not in self._seen and name not in ("role", "content"):
                raise ConfigError(f"data.columns={{{name}: {key}}}: no record of {self.name} has {key!r}")
        lines = [f"{self.name}: {guess} (data.columns)" for guess in self._guessed]
        if self._unread:
            listed = ", ".join(map(repr, self._unread))
            lines.append(f"{self.name}: {listed} {'is' if len(self._unread) == 1 else 'are'} not read (data.columns)")
        return lines

    def _check_settings(self, record: Record, place: str, named: Named) -> None:
        last = [each.turns[-1] for each in record.conversations if each.turns]
        if self.settings.train_on is TrainOn.last and last and not any(turn.trained for turn in last):
            raise ConfigError(f"{place}: its last answer is not to be trained, and data.train_on=last trains no other")
        if lacks_input(self.settings.template) and any(
            turn.input for each in record.conversations for turn in each.turns
        ):
            raise ConfigError(
                f"{place}: has {named.key('input')!r}, for which data.template has no place: add {{input}} to it"
            )

    def _note(self, form: Format, named: Named, record: Record) -> None:
        given = self.settings.columns
        self._seen.update(key for key in given.values() if key in named.raw)
        guesses = [
            f"{name} from {key!r}"
            for name, key in named.names.items()
            if name != key and key not in given.values() and (name, key) not in EXACT
        ]
        if guesses:
            self._guessed.setdefault(", ".join(guesses))
        known = set(_texts(record))
        read = named.read | READ_ELSEWHERE
        for key in keys.unread(named.raw, read, known):
            if not any(
                named.raw[key] == named.raw.get(other) for other in named.read
            ):  # a copy: UltraFeedback's messages
                self._unread.setdefault(key)
        for turn in _turns(named):
            for key in keys.unread(turn, TURN_KEYS, known):
                self._unread.setdefault(key)


def _turns(named: Named) -> Iterator[Mapping[str, Any]]:
    for name in ("messages", "conversations", "chosen", "rejected"):
        turns = named.get(name)
        yield from (turn for turn in (turns if isinstance(turns, list) else ()) if isinstance(turn, dict))


def _texts(record: Record) -> Iterator[str]:
    for conversation in record.conversations:
        yield from (turn.content.strip() for turn in conversation.turns)
