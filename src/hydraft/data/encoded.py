"""Encoded records on disk: how they are written, read on access, and found to be complete."""

import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from datasets.arrow_writer import ArrowWriter

from hydraft.config.choices import Thinking
from hydraft.data.tokenize import Example, Truncation

FEATURES = datasets.Features(
    {
        "input_ids": datasets.List(datasets.Value("int32")),
        "labels": datasets.List(datasets.Value("int32")),
        "length": datasets.Value("int32"),
        "source": datasets.Value("int32"),
        "number": datasets.Value("int64"),
    }
)
"""Of an example: its tokens and labels, their number, and the source (an index) and the record that it comes from."""

DESIRABLE = {"desirable": datasets.Value("bool")}
"""Of a judged answer, besides: whether it is good."""

EXAMPLE = ("input_ids", "labels", "desirable")
"""The columns that are keys of ``Example``."""

ROWS = 256
"""Examples that are written at a time."""

ABOUT, DATA = "about.json", "data.arrow"
"""The files of a folder of encoded records."""


class Encoded(Sequence[Example]):
    """Encoded records on disk, read on access."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "about.json").read_text())
        self.key = f"{folder.name}-3" if about["changed"] else folder.name
        """Of all that the examples depend on. Where earlier versions encoded them differently, no run of theirs is resumed with them."""
        stored = datasets.Dataset.from_file(str(folder / "data.arrow"))
        self.rows = stored.select_columns([name for name in EXAMPLE if name in stored.column_names])
        self.origins = stored.select_columns(["source", "number"]) if "number" in stored.column_names else None
        self.lengths = array("i", about["lengths"] if self.origins is None else stored.data.column("length").to_numpy())
        """Tokens of each example."""
        self.truncation = Truncation(**about["truncation"])
        """What ``data.max_length`` cut off."""
        self.notes: list[str] = about["notes"]
        """Lines to show to the user: how the records were read and encoded."""
        self.sources: list[str] = about.get("sources", [])
        """Names of the sources."""
        self.thinking = Thinking(about["thinking"])
        """``data.thinking``, on or off."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def origin(self, index: int) -> tuple[str, int]:
        """The source of an example, and the number of its record there, from 1."""
        if self.origins is None:
            return "the encoded records", index + 1
        row = self.origins[index]
        return self.sources[row["source"]], row["number"]


def as_stored(cut: Truncation) -> dict[str, int]:
    """What was cut off, as ``about.json`` has it: earlier versions know three of the counts."""
    return {name: count for name, count in vars(cut).items() if count or name != "same"}


def write(
    rows: Iterable[tuple[dict[str, Any], Truncation, bool]], file: Path, judged: bool = False
) -> tuple[Truncation, bool]:
    """Write the examples; returns what was cut off, and whether a record was split.

    Args:
        judged: whether they have the key ``desirable``.
    """
    cut, split = Truncation(), False
    features = datasets.Features({**FEATURES, **DESIRABLE}) if judged else FEATURES
    with ArrowWriter(path=str(file), features=features, writer_batch_size=ROWS) as writer:
        for row, lost, of_split in rows:
            writer.write(row)
            cut += lost
            split = split or of_split
        writer.finalize()
    return cut, split


def incomplete(folder: Path) -> str | None:
    """What is missing in a folder that was written by a version without seals.

    Raises:
        OSError, ValueError: a file in it cannot be read.
    """
    for name in (ABOUT, DATA):
        if not (folder / name).is_file():
            return f"{name} is missing"
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    if not isinstance(about, dict) or not {"truncation", "notes"} <= set(about):
        return f"{ABOUT} is not what was written"
    try:
        with pyarrow.memory_map(str(folder / DATA)) as mapped, pyarrow.ipc.open_stream(mapped) as stream:
            rows = 0
            for batch in stream:
                batch.validate(full=True)
                rows += batch.num_rows
            ended = mapped.tell() == mapped.size()
    except pyarrow.ArrowException as error:
        return f"{DATA} is cut off or damaged ({str(error).splitlines()[0]})"
    if rows == 0 or not ended or rows != len(about.get("lengths", range(rows))):
        return f"{DATA} is cut off"
    return None
