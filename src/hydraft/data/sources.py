"""Reads files and data sets of the hub as objects, unchecked. No torch at module level."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydraft.errors import ConfigError


def is_file(source: str) -> bool:
    """Whether ``source`` is a file, not a data set on the hub."""
    path = Path(source).expanduser()
    return path.exists() or path.suffix in (".json", ".jsonl", ".parquet") or source.startswith((".", "/", "~"))


def read_objects(source: str, name: str) -> list[Any]:
    """The objects in a file or in a data set on the hub, unchecked; ``name`` is used in messages."""
    path = Path(source).expanduser()
    if not is_file(source):
        return _from_hub(source, name)
    if path.suffix == ".parquet":
        return _parquet(path, name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error.strerror})") from None
    return _parse_lines(text, name) if path.suffix == ".jsonl" else _parse_list(text, name)


def _parse_list(text: str, name: str) -> list[Any]:
    try:
        value = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}: not JSON (line {error.lineno}: {error.msg})") from None
    if not isinstance(value, list):
        raise ConfigError(f"{name}: must be a JSON list of records, and is a {type(value).__name__}")
    return value


def _parse_lines(text: str, name: str) -> list[Any]:
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{name}, line {number}: not JSON ({error.msg})") from None
    return records


def _parquet(path: Path, name: str) -> list[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{name}: not a Parquet file ({str(error).splitlines()[0]})") from None
    return _without_nulls(rows)


def _without_nulls(rows: Iterable[dict[str, Any]]) -> list[Any]:
    """Rows of a table as records; columns that are null in a row are left out."""
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def _from_hub(source: str, name: str) -> list[Any]:
    import datasets

    owner, _, split = source.partition(":")
    try:
        return _without_nulls(datasets.load_dataset(owner, split=split or "train"))
    except Exception as error:  # the hub's client raises many types
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{name}: no such file, and not available on the hub ({reason})") from error
