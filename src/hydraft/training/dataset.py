"""The records of a run, the same on every rank: encoded ones to train on, in bins if they are packed or if a record has several sequences.

A file may be replaced while the ranks start. The first rank of each machine reads the sources for the key of the encoded records, the
keys of all machines are compared, and the other ranks open what has this key.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from hydraft.config.debug import DebugKind
from hydraft.config.schema import Config
from hydraft.data import cache, held_out, mixture
from hydraft.data.batch import fill, group
from hydraft.data.encoded import Encoded
from hydraft.data.encoding import Encoding
from hydraft.data.examples import Examples
from hydraft.data.records import Read, Record
from hydraft.errors import ConfigError
from hydraft.models import exchange
from hydraft.plan import micro_batch
from hydraft.runs import consistency
from hydraft.system.console import Screen


@dataclass(frozen=True)
class TrainingData:
    """Items to train on."""

    encoded: Encoded
    examples: Examples
    lengths: Sequence[int]
    """Tokens of each item."""
    entry: cache.Entry | None
    """Of the cache, on the first rank of each machine."""


def load_training_data(config: Config, tokenizer: Any, encoding: Encoding, screen: Screen) -> TrainingData:
    """Read the encoded records from the cache, or encode them on the first rank of this machine."""
    data = config.data

    def progress(done: int, total: int) -> None:
        if screen.name != "encoding":
            screen.phase("encoding", total)
        screen.advance(done - screen.completed)

    entry = None
    if int(os.environ["LOCAL_RANK"]) == 0:
        entry = cache.Entry(data, config.seed, tokenizer, encoding)
        entry.remove_if_damaged(screen.say)
    key = _same_everywhere(f"data.train={data.train}", None if entry is None else entry.key)
    encoded = cache.awaited(key) if entry is None else entry.ready(progress)
    for note in encoded.notes:
        screen.say(note)
    if encoded.truncation.records:
        screen.say(f"data.max_length={data.max_length}: {encoded.truncation}")
    sequences = encoding.sequences
    bins = group(encoded.lengths, sequences, data.max_length if data.packing else None)
    if data.packing and bins is not None:
        screen.say(fill(encoded.lengths, bins, data.max_length * sequences))
    if config.debug.kind is DebugKind.overfit:  # each epoch is one step, of the same batch
        bins = ([[i] for i in range(len(encoded))] if bins is None else bins)[: config.global_batch_size]
    pad_id, indexed = int(tokenizer.pad_token_id), bool(encoding.name)
    mismatched = data.max_length if encoding.judged else None
    examples = Examples(encoded, pad_id, bins, sequences, indexed, mismatched)
    micro_batch.check(config.train.micro_batch_size, len(examples))
    return TrainingData(encoded, examples, examples.lengths(encoded.lengths), entry)


def load_held_out(config: Config, read: Read, entry: cache.Entry | None) -> list[Record]:
    """Read the held-out records.

    Args:
        read: makes a record from an object in the file.
        entry: of the training records, on the first rank of each machine.

    Raises:
        ConfigError: ranks have read different ones, or a share of other records than those that are trained.
    """
    data = config.data
    if data.eval is None:
        return []
    records = mixture.held_out(data, config.seed, read)
    if entry is not None and held_out.share(data) is not None:
        entry.check_unchanged()
    content = hashlib.blake2b(digest_size=16)
    for record in records:
        content.update(held_out.digest(record, config.seed).to_bytes(8))
    _same_everywhere(f"data.eval={data.eval}", content.hexdigest())
    return records


def _same_everywhere(setting: str, found: str | None) -> str:
    """What rank 0 has found, if every rank that has found anything has found the same.

    Raises:
        ConfigError: names the setting, and the ranks that differ.
    """
    ranks = exchange.all_gather([f"rank {dist.get_rank()} ({consistency.host()})", found])
    first, expected = ranks[0]
    for name, other in ranks[1:]:
        if other not in (None, expected):
            raise ConfigError(
                f"{setting}: {name} has read other records than {first}: a file was changed while the run started, or is not the same "
                "on all hosts; start the run again with the same files everywhere"
            )
    return str(expected)
