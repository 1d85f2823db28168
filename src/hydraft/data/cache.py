"""A cache of encoded records: one process of a machine encodes, and the others and later runs read the result.

The key depends on all that determines the tokens: the contents of the sources, the data section, the tokenizer and its template.
Ranks wait for files, not in a collective, so that no timeout limits how long encoding takes.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from hydraft.config.choices import Thinking
from hydraft.config.data import DataConfig
from hydraft.data import held_out, mixture, rendering_notes, thinking
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

FORMAT = 3
"""The version of the cached files. Increased when the same records are encoded differently or stored differently."""


class Encoded(Sequence[Example]):
    """Encoded records on disk, read on access."""

    def __init__(self, folder: Path) -> None:
        self.key = folder.name
        """The cache's key."""
        stored = datasets.Dataset.from_file(str(folder / "data.arrow"))
        self.rows = stored.select_columns(["input_ids", "labels"])
        self.origins = stored.select_columns(["source", "number"])
        about = json.loads((folder / "about.json").read_text())
        self.lengths: list[int] = stored.data.column("length").to_pylist()
        """Tokens of each example."""
        self.truncation = Truncation(**about["truncation"])
        """What ``data.max_length`` cut off."""
        self.notes: list[str] = about["notes"]
        """Lines to show to the user: how the records were read and encoded."""
        self.sources: list[str] = about["sources"]
        """Names of the sources."""
        self.thinking = Thinking(about["thinking"])
        """``data.thinking``, on or off."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def origin(self, index: int) -> tuple[str, int]:
        """The source of an example, and the number of its record there, from 1."""
        row = self.origins[index]
        return self.sources[row["source"]], row["number"]


def key(data: DataConfig, seed: int, tokenizer: PreTrainedTokenizerBase, encoding: Encoding = SFT) -> str:
    """Hash of all that the encoded training records depend on."""
    backend, share = getattr(tokenizer, "backend_tokenizer", None), held_out.share(data)
    parts: list[Any] = [
        FORMAT, __version__, data.template, data.train_on.value, data.max_length, data.format.value, data.only,
        data.mix, share, data.on_bad_record.value, data.thinking.value,
        seed if data.mix or share else None,
        backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items()),
        tokenizer.chat_template, tokenizer.eos_token, tokenizer.bos_token,
    ]  # fmt: skip
    if data.columns or data.labels:
        parts.append([dict(data.columns), data.labels])
    if encoding.name:
        parts.append(encoding.name)
    parts += [Source(source, "data.train").fingerprint() for source in (data.train, *dict(mixture.mix(data)))]
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
        while not target.is_dir():  # if the encoding process fails, the launcher ends this one
            time.sleep(0.05)
        return Encoded(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # another run may encode the same records
        if not target.is_dir():
            records = mixture.training(data, seed, encoding.read)
            resolved = thinking.resolve(data, records)
            examples = _encoded(records, lambda record: encoding.encode(record, tokenizer, resolved), data, progress)
            with files.staged_folder(target) as staging:
                cut = _write(examples, staging / "data.arrow")
                about = {
                    "truncation": vars(cut),
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
) -> Iterator[tuple[dict[str, Any], Truncation]]:
    """Rows of the cache, one record after another, each with what was cut off."""
    done, total = 0, len(records)
    for source, part in enumerate(records.mixture.parts):
        for record in part:
            for example, lost in fit(record, encode(record), data.max_length):
                length = len(example["input_ids"])
                yield {**example, "length": length, "source": source, "number": record.number}, lost
            done += 1
            if done % 100 == 0 or done == total:
                progress(done, total)


def _write(rows: Iterable[tuple[dict[str, Any], Truncation]], file: Path) -> Truncation:
    cut = Truncation()
    with ArrowWriter(path=str(file), features=FEATURES, writer_batch_size=ROWS) as writer:
        for row, lost in rows:
            writer.write(row)
            cut += lost
        writer.finalize()
    return cut
