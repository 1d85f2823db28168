"""Holds out a share of the training records, the same one in every process. No torch."""

import hashlib
import re
from array import array
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from hydraft.config.data import DataConfig
from hydraft.data.records import Judged, Record
from hydraft.errors import ConfigError

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?(\s*%)?")


def share(data: DataConfig) -> float | None:
    """The share of the training records that ``data.eval`` holds out; None if it names a file or nothing.

    Raises:
        ConfigError: it is a number that is not a share.
    """
    text = (data.eval or "").strip()
    if NUMBER.fullmatch(text) is None or Path(text).exists():
        return None
    value = float(text.rstrip("% ")) / (100 if text.endswith("%") else 1)
    if not 0 < value < 1:
        raise ConfigError(
            f"data.eval={text}: must be a file, or a share of the training records between 0 and 1 such as 0.05 or 5%"
        )
    return value


def seed_of(data: DataConfig, seed: int) -> int:
    """The seed that chooses the records of a share: ``data.eval_seed``, by default the ``seed`` of the run."""
    return seed if data.eval_seed is None else data.eval_seed


def digest(record: Record, seed: int) -> int:
    """A number of 64 bits for the content of a record; equal records have the same."""
    content: list[object] = [replace(conversation, number=0) for conversation in record.conversations]
    if isinstance(record, Judged):
        content.append(record.desirable)
    return int.from_bytes(hashlib.blake2b(f"{seed} {content!r}".encode(errors="surrogatepass"), digest_size=8).digest())


def chosen(digests: Iterable[int], part: float, at_least: int) -> frozenset[int]:
    """The smallest digests: so many that ``part`` of all records have them.

    Equal records are held out together, and the choice does not depend on the order of the records.
    """
    ordered = array("Q", sorted(digests))
    return frozenset(ordered[: max(at_least, round(part * len(ordered)))])
