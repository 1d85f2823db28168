"""Reads tables row by row: CSV and TSV, Parquet, Arrow. No torch."""

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from hydraft.data.reading.row import Row, is_broken, without_nulls
from hydraft.errors import ConfigError

ROWS = 1000
"""Rows of a binary table that are read at a time."""

LONGEST_CELL = 1 << 26
"""Characters of a cell of a CSV file. A longer one shows that a quote is never closed."""

DELIMITERS = {".csv": ",;\t", ".tsv": "\t,;", ".tab": "\t,;"}
"""By suffix: what may be between the cells, the usual one first."""

TYPED = {"label", "weight", "train", "trained", "loss", "masked"}
"""Columns whose cells are numbers or truth values in other kinds of files."""

NO_VALUE = ("", "NaN", "nan")
"""Cells of a CSV file without a value: nothing, and how pandas and numpy write a missing number."""


def csv_rows(file: TextIO, suffix: str, label: str) -> Iterator[Row]:
    """The rows of a table in text, whose first line has the names of its columns; an empty cell is none.

    Raises:
        ConfigError: there are no names of columns, one occurs twice, or a quote is never closed.
    """
    csv.field_size_limit(LONGEST_CELL)
    first = file.readline()
    delimiter = max(DELIMITERS[suffix], key=first.count)  # the first of those that are as frequent
    reader = csv.reader(_chain(first, file), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise ConfigError(
            f"{label}: not a table ({error} in line 1, which must have the names of the columns)"
        ) from None
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{label}: has two columns named {name!r}")
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "unexpected end" in str(error) or "larger than" in str(error):
                raise ConfigError(
                    f"{label}, line {line}: a quote is opened here or later and never closed, so that no row after it can be read"
                ) from None
            yield Row(line=line, fault=f"not a row of a table ({error})")
            continue
        if cells is None:
            return
        if cells:
            yield _csv_row(names, cells, line)


def _chain(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest


def _csv_row(names: list[str], cells: list[str], line: int) -> Row:
    if len(cells) != len(names):
        return Row(line=line, fault=f"its number of cells is {len(cells)}, and that of the columns {len(names)}")
    values = {name: _cell(name, cell) for name, cell in zip(names, cells, strict=True) if cell not in NO_VALUE}
    return Row(values, line, broken=any(map(is_broken, cells)))


def _cell(name: str, cell: str) -> Any:
    if name in TYPED:
        if re.fullmatch(r"-?\d{1,9}", cell):
            return int(cell)
        if re.fullmatch(r"-?\d{1,9}\.\d{1,9}", cell):
            return float(cell)
        if cell.lower() in ("true", "false"):
            return cell.lower() == "true"
    return cell


def parquet_rows(path: Path, label: str) -> Iterator[Row]:
    """The rows of a Parquet file.

    Raises:
        ConfigError: it is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            for batch in file.iter_batches(batch_size=ROWS):
                yield from _batch(batch)
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{label}: not a Parquet file, or damaged ({str(error).splitlines()[0]})") from None


def arrow_rows(path: Path, label: str) -> Iterator[Row]:
    """The rows of an Arrow file, an Arrow stream (as ``datasets`` writes them), or Feather.

    Raises:
        ConfigError: it is damaged.
    """
    import pyarrow
    import pyarrow.feather

    try:
        with path.open("rb") as file:
            magic = file.read(6)
        if magic.startswith(b"FEA1"):
            batches: Iterable[Any] = pyarrow.feather.read_table(path).to_batches()
        elif magic == b"ARROW1":
            opened = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
            batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
        else:
            batches = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
        for batch in batches:
            yield from _batch(batch)
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{label}: not an Arrow file, or damaged ({str(error).splitlines()[0]})") from None


def _batch(batch: Any) -> Iterator[Row]:
    for start in range(0, batch.num_rows, ROWS):
        part = batch.slice(start, ROWS)
        try:
            found = [Row(without_nulls(columns)) for columns in part.to_pylist()]
        except (UnicodeDecodeError, ValueError):
            found = [_one(part.slice(index, 1)) for index in range(part.num_rows)]
        yield from found


def _one(row: Any) -> Row:
    try:
        return Row(without_nulls(row.to_pylist()[0]))
    except UnicodeDecodeError:
        return Row(fault="is not UTF-8 text")
    except ValueError as error:
        return Row(fault=f"cannot be read ({str(error).splitlines()[0]})")
