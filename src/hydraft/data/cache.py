"""A cache of encoded records: one process of a machine encodes, and the others and later runs read the result.

The key depends on all that determines the tokens: the contents of the sources, the data section, the tokenizer and its template.
Ranks wait for files, not in a collective, so that no timeout limits how long encoding takes.
"""

import hashlib
import json
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from hydraft.config.choices import OnBadRecord, Thinking
from hydraft.config.data import DataConfig
from hydraft.data import earlier, held_out, mixture, rendering_notes, thinking
from hydraft.data.encoding import SFT, Encoding
from hydraft.data.records import Record
from hydraft.data.sources import Source
from hydraft.data.split_text import fit
from hydraft.data.tokenize import Example, Truncation
from hydraft.system import files
from hydraft.system.version import __version__

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

ROWS = 256
"""Examples that are written at a time."""

FORMAT = 2
"""The version of the cached files, which is increased when all records are encoded differently. Files of earlier versions, which have no
``number``, ``source`` and ``thinking``, are read too, unless their records are among those that are encoded differently now."""


class Encoded(Sequence[Example]):
    """Encoded records on disk, read on access."""

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "about.json").read_text())
        self.key = f"{folder.name}-3" if about["changed"] else folder.name
        """Of all that the examples depend on. Where earlier versions encoded them differently, no run of theirs is resumed with them."""
        stored = datasets.Dataset.from_file(str(folder / "data.arrow"))
        self.rows = stored.select_columns(["input_ids", "labels"])
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
        parts.append({"held out": share, "seed": seed})
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
    target = files.cache_folder("encoded") / key(data, seed, tokenizer, encoding)
    if not encodes:
        while not _usable(target):  # if the encoding process fails, the launcher ends this one
            time.sleep(0.05)
        return Encoded(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # another run may encode the same records
        if not _usable(target):
            records = mixture.training(data, seed, encoding.read)
            resolved = thinking.resolve(data, records)
            changed = earlier.differs(records, tokenizer, resolved)
            if target.is_dir() and not changed and _cut_nothing(target):
                about = json.loads((target / "about.json").read_text())
                files.write_json(
                    target / "about.json", {**about, "changed": False, "thinking": resolved.thinking.value}
                )
                return Encoded(target)
            examples = _encoded(records, lambda record: encoding.encode(record, tokenizer, resolved), data, progress)
            with files.staged_folder(target) as staging:
                cut, split = _write(examples, staging / "data.arrow")
                about = {
                    "truncation": vars(cut),
                    "changed": changed or split,
                    "notes": [*records.mixture.notes, *rendering_notes.of(records, tokenizer, resolved)],
                    "sources": [part.name for part in records.mixture.parts],
                    "thinking": resolved.thinking.value,
                }
                files.write_json(staging / "about.json", about)
    return Encoded(target)


def _encoded(
    records: mixture.TrainingRecords,
    encode: Callable[[Record], list[Example]],
    data: DataConfig,
    progress: Callable[[int, int], None],
) -> Iterator[tuple[dict[str, Any], Truncation, bool]]:
    """Rows of the cache, one record after another; of each, what was cut off, and whether the record was split."""
    done, total = 0, len(records)
    for source, part in enumerate(records.mixture.parts):
        for record in part:
            whole = encode(record)
            fitted = list(fit(record, whole, data.max_length))
            for example, lost in fitted:
                length = len(example["input_ids"])
                row = {**example, "length": length, "source": source, "number": record.number}
                yield row, lost, len(fitted) > len(whole)
            done += 1
            if done % 100 == 0 or done == total:
                progress(done, total)


def _write(rows: Iterable[tuple[dict[str, Any], Truncation, bool]], file: Path) -> tuple[Truncation, bool]:
    """Write the examples; returns what was cut off, and whether a record was split."""
    cut, split = Truncation(), False
    with ArrowWriter(path=str(file), features=FEATURES, writer_batch_size=ROWS) as writer:
        for row, lost, of_split in rows:
            writer.write(row)
            cut += lost
            split = split or of_split
        writer.finalize()
    return cut, split


def _usable(folder: Path) -> bool:
    """Whether the records are stored here, by this version or by an earlier one whose records were found to be the same."""
    return folder.is_dir() and "changed" in json.loads((folder / "about.json").read_text())


def _cut_nothing(folder: Path) -> bool:
    """Whether an earlier version cut none of the records: they may have been plain texts, which are split now."""
    return bool(json.loads((folder / "about.json").read_text())["truncation"]["records"] == 0)
