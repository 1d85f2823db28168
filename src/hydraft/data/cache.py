"""A cache of encoded records: one process of a machine encodes, and the others and later runs read the result.

The key depends on all that determines the tokens: the contents of the sources, the data section, the tokenizer and its template.
Ranks wait for files, not in a collective, so that no timeout limits how long encoding takes.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hydraft.config.choices import OnBadRecord, Thinking
from hydraft.config.data import DataConfig
from hydraft.data import earlier, held_out, mixture, rendering_notes, thinking
from hydraft.data.encoded import ABOUT, DATA, Encoded, as_stored, incomplete, write
from hydraft.data.encoding import SFT, Cut, Encoding
from hydraft.data.records import Record
from hydraft.data.sources import Source
from hydraft.data.split_text import fit
from hydraft.data.tokenize import Example, Truncation
from hydraft.errors import ConfigError
from hydraft.system import cache_entries, files
from hydraft.system.version import __version__

FORMAT = 2
"""The version of the cached files, which is increased when all records are encoded differently. Files of earlier versions, which have no
``number``, ``source`` and ``thinking``, are read too, unless their records are among those that are encoded differently now."""


def key(data: DataConfig, seed: int, tokenizer: PreTrainedTokenizerBase, encoding: Encoding = SFT) -> str:
    """Hash of all that the encoded training records depend on."""
    backend, share = getattr(tokenizer, "backend_tokenizer", None), held_out.share(data)
    parts: list[Any] = [
        FORMAT, __version__, data.template, data.train_on.value, data.max_length, data.format.value, data.only,
        data.mix,
        seed if data.mix else None,
        backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items()),
        tokenizer.chat_template, tokenizer.eos_token, tokenizer.bos_token,
    ]  # fmt: skip
    if share is not None:
        parts.append({"held out": share, "seed": held_out.seed_of(data, seed)})
    if data.on_bad_record is not OnBadRecord.refuse:
        parts.append(data.on_bad_record.value)
    if data.columns or data.labels:
        parts.append([dict(data.columns), data.labels])
    if data.thinking is not Thinking.auto:
        parts.append(data.thinking.value)
    if encoding.name:
        parts.append(encoding.name)
    parts += [
        Source(source, "data.train").fingerprint() for source in (data.train, *(name for name, _ in mixture.mix(data)))
    ]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:32]


class Entry:
    """The entry of the cache for the training records of a run, under the key of what the records are now."""

    def __init__(
        self, data: DataConfig, seed: int, tokenizer: PreTrainedTokenizerBase, encoding: Encoding = SFT
    ) -> None:
        """Read the files of the sources, for the key.

        Raises:
            ConfigError: there is no such source, or it cannot be read.
        """
        self.data, self.seed, self.tokenizer, self.encoding = data, seed, tokenizer, encoding
        self._files = _files(data)
        self.key = key(data, seed, tokenizer, encoding)
        self.folder = folder(self.key)

    def remove_if_damaged(self, say: cache_entries.Say) -> None:
        """Verify the entry, and remove it if it is damaged; ``say`` is told.

        Raises:
            ConfigError: it is damaged, and may not be removed.
        """
        if _fault(self.folder) is not None:
            with cache_entries.locked(self.folder):
                if (why := _fault(self.folder)) is not None:
                    cache_entries.set_aside(self.folder, why, say)

    def ready(self, progress: Callable[[int, int], None]) -> Encoded:
        """The encoded records, which are encoded if they are not there.

        Args:
            progress: called with the numbers of encoded and of all records.

        Raises:
            ConfigError: a record cannot be read, or a file of the sources changes meanwhile.
        """
        if not _usable(self.folder):
            with cache_entries.locked(self.folder):  # another run may encode the same records
                cache_entries.clear(self.folder)
                if not _usable(self.folder):
                    self._encode(progress)
                    cache_entries.seal(self.folder)
        return Encoded(self.folder)

    def check_unchanged(self) -> None:
        """Refuse sources whose files are not what they were when the key was computed.

        Raises:
            ConfigError: names the first that has changed.
        """
        now = _files(self.data)
        if now != self._files and key(self.data, self.seed, self.tokenizer, self.encoding) != self.key:
            changed = next((file for file in {**self._files, **now} if self._files.get(file) != now.get(file)), None)
            raise ConfigError(
                f"data.train={self.data.train}: {changed} was changed while the run started: start it again"
            )

    def _encode(self, progress: Callable[[int, int], None]) -> None:
        target, data = self.folder, self.data
        records = mixture.training(data, self.seed, self.encoding.read)
        resolved = thinking.resolve(data, records)
        changed = earlier.differs(records, self.tokenizer, resolved)
        if target.is_dir() and not changed and _cut_nothing(target):
            about = json.loads((target / ABOUT).read_text())
            files.write_json(target / ABOUT, {**about, "changed": False, "thinking": resolved.thinking.value})
            return

        def encode(record: Record) -> list[Example]:
            return self.encoding.encode(record, self.tokenizer, resolved)

        with files.staged_folder(target) as staging:
            rows = _encoded(records, encode, self.encoding.cut, data.max_length, progress)
            cut, split = write(rows, staging / DATA, self.encoding.judged)
            about = {
                "truncation": as_stored(cut),
                "changed": changed or split,
                "notes": [*records.mixture.notes, *rendering_notes.of(records, self.tokenizer, resolved)],
                "sources": [part.name for part in records.mixture.parts],
                "thinking": resolved.thinking.value,
            }
            files.write_json(staging / ABOUT, about)
            self.check_unchanged()


def folder(key: str) -> Path:
    """Where the records of this key are kept."""
    return files.cache_folder("encoded") / key


def awaited(key: str) -> Encoded:
    """The records of this key, which another process of this machine encodes; if it fails, the launcher ends this one."""
    while not _usable(folder(key)):
        time.sleep(0.05)
    return Encoded(folder(key))


def training(
    data: DataConfig,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    encodes: bool,
    progress: Callable[[int, int], None],
    encoding: Encoding = SFT,
) -> Encoded:
    """The encoded training records of a run.

    Args:
        encodes: whether this process encodes the records if they are not cached (one process of a machine); the others wait.
        progress: called with the numbers of encoded and of all records.
    """
    entry = Entry(data, seed, tokenizer, encoding)
    if not encodes:
        return awaited(entry.key)
    entry.remove_if_damaged(lambda line: print(line, file=sys.stderr))
    return entry.ready(progress)


def _files(data: DataConfig) -> dict[str, tuple[int, ...] | None]:
    """The files of the sources, each with what changes when it is written or replaced; None for one that is gone."""
    found: dict[str, tuple[int, ...] | None] = {}
    for source in (data.train, *(name for name, _ in mixture.mix(data))):
        for part in Source(source, "data.train").parts:
            found |= {str(file): _identity(file) for file in part.files}
    return found


def _identity(file: Path) -> tuple[int, ...] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _encoded(
    records: mixture.TrainingRecords,
    encode: Callable[[Record], list[Example]],
    cut: Cut,
    max_length: int,
    progress: Callable[[int, int], None],
) -> Iterator[tuple[dict[str, Any], Truncation, bool]]:
    """Rows of the cache, one record after another; of each, what was cut off, and whether the record was split."""
    done, total = 0, len(records)
    for source, part in enumerate(records.mixture.parts):
        for record in part:
            whole = encode(record)
            fitted = list(fit(record, whole, max_length, cut))
            for example, lost in fitted:
                length = len(example["input_ids"])
                row = {**example, "length": length, "source": source, "number": record.number}
                yield row, lost, len(fitted) > len(whole)
            done += 1
            if done % 100 == 0 or done == total:
                progress(done, total)


def _fault(folder: Path) -> str | None:
    return cache_entries.fault(folder, incomplete) if cache_entries.exists(folder) else None


def _usable(folder: Path) -> bool:
    """Whether the records are stored here, by this version or by an earlier one whose records were found to be the same."""
    try:
        return "changed" in json.loads((folder / ABOUT).read_text())
    except (OSError, ValueError, TypeError):
        return False


def _cut_nothing(folder: Path) -> bool:
    """Whether an earlier version cut none of the records: they may have been plain texts, which are split now."""
    return bool(json.loads((folder / ABOUT).read_text())["truncation"]["records"] == 0)
