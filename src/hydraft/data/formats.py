"""Data files to records, with each fault named by file and place. No torch.

A record is ``{instruction, input?, output}`` (the alpaca form) or ``{text}`` (every token is trained). Other keys
are kept; ``task`` groups the scores.
"""

import json
from pathlib import Path
from typing import Any

from hydraft.config import ConfigError

Record = dict[str, Any]


def load_records(path: str, setting: str) -> list[Record]:
    """Read the records of a ``.json`` list or a ``.jsonl`` file.

    Args:
        path: the file.
        setting: the override that names it, for messages (``data.train``).

    Raises:
        ConfigError: the file is missing, unreadable, not JSON, empty, or has a record without an answer.
    """
    name = f"{setting}={path}"
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{name}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error.strerror})") from None
    records = _parse_lines(text, name) if path.endswith(".jsonl") else _parse_list(text, name)
    if not records:
        raise ConfigError(f"{name}: no records in it")
    for number, record in enumerate(records, 1):
        _check(record, f"{name}, record {number}")
    return records


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


def _check(record: Any, place: str) -> None:
    if not isinstance(record, dict):
        raise ConfigError(f"{place}: must be an object with instruction and output, and is a {type(record).__name__}")
    required = ("text",) if "text" in record else ("instruction", "output")
    for key in required:
        if key not in record:
            raise ConfigError(f"{place}: has no {key!r} (its keys: {', '.join(map(str, record)) or 'none'})")
    for key in (*required, "input"):
        if not isinstance(record.get(key, ""), str):
            raise ConfigError(f"{place}: {key!r} must be text, and is a {type(record[key]).__name__}")
    answer = required[-1]
    if not record[answer].strip():
        raise ConfigError(f"{place}: {answer!r} is empty, so there is nothing to learn from it")
