"""Where the ranks of a run find each other. Their launcher writes it to the folder of notes, which only this user can enter. No torch."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from hydraft.system import files

NAME = "rendezvous.json"


@dataclass(frozen=True)
class Rendezvous:
    """A file, for ranks on one machine, or a store of torch on the network."""

    file: str | None = None
    """The file; None for a store on the network."""
    address: str = ""
    """The store's."""
    port: int = 0
    prefix: str = ""
    """Before every key of this run in the store."""

    def write(self, notes: Path) -> None:
        """Leave it for the ranks whose folder of notes this is."""
        files.write_json(notes / NAME, asdict(self))

    @classmethod
    def read(cls, notes: Path) -> Self:
        """What the launcher has left there."""
        return cls(**json.loads((notes / NAME).read_text()))
