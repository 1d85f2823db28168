"""A record under the names of a format, and the names that the user gave. No torch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydraft.config.choices import OnBadRecord, TrainOn


class Named(dict[str, Any]):
    """A record under the names of its format, which remembers the keys that its values have in the file."""

    def __init__(self, values: Mapping[str, Any], names: Mapping[str, str], place: str = "") -> None:
        """``values`` is the record as it is in the file, ``names`` gives a key to each part that was found."""
        found = {*names, *names.values()}
        super().__init__({key: value for key, value in values.items() if key not in found})
        self.update({name: values[key] for name, key in names.items() if key in values})
        self.names = dict(names)
        self.raw = values

    def key(self, name: str) -> str:
        """The key in the file."""
        return self.names.get(name, name)

    def without(self, parts: Collection[str], keys: Collection[str] = ()) -> "Named":
        """The record without some of its parts, and without ``keys`` of the file."""
        removed = {*parts, *keys, *(self.key(part) for part in parts)}
        names = {name: key for name, key in self.names.items() if name not in parts}
        made = Named({key: value for key, value in self.raw.items() if key not in removed - {*names.values()}}, names)
        made.update({name: value for name, value in self.items() if name not in removed})
        return made

    @property
    def read(self) -> frozenset[str]:
        """The keys of the file that are read."""
        return frozenset(self.names.values())


@dataclass(frozen=True)
class RecordSettings:
    """The settings that say how records are read."""

    columns: Mapping[str, str] = field(default_factory=dict)
    """``data.columns``"""
    labels: Sequence[str] = ()
    """``data.labels``"""
    template: str = "chat"
    """``data.template``, which must have a place for what the records have."""
    train_on: TrainOn = TrainOn.all
    """``data.train_on``: something of every record must be trained."""
    on_bad: OnBadRecord = OnBadRecord.refuse
    """``data.on_bad_record``"""

    def of_record(self, record: Mapping[str, Any]) -> dict[str, str]:
        """The keys of this record that ``data.columns`` names; those of a turn are left out."""
        return {name: key for name, key in self.columns.items() if key in record and name not in ("role", "content")}


DEFAULTS = RecordSettings()
