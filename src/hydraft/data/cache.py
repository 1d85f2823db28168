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
from hydraft.data import mixture, rendering_notes, thinking
from hydraft.data.encoding import SFT, Encoding
from hydraft.data.records import Record
from hydraft.data.sources import is_file
from hydraft.data.tokenize import Example, Truncation, truncate
from hydraft.system import files
from hydraft.system.version import __version__

FEATURES = datasets.Features(
    {"input_ids": datasets.List(datasets.Value("int32")), "labels": datasets.List(datasets.Value("int32"))}
)


FORMAT = 3
"""The version of the cached files. Increased when the same records are encoded differently or stored differently."""


class Encoded(Sequence[Example]):
    """Encoded records on disk, read on access."""

    def __init__(self, folder: Path) -> None:
        self.rows = datasets.Dataset.from_file(str(folder / "data.arrow"))
        about = json.loads((folder / "about.json").read_text())
        self.key = folder.name
        """The cache's key: that of version 2 if its records are encoded as they were then, so that earlier runs can be resumed."""
        self.lengths: list[int] = about["lengths"]
        """Tokens of each record."""
        self.truncation = Truncation(**about["truncation"])
        """What ``data.max_length`` cut off."""
        self.notes: list[str] = about["notes"]
        """Lines to show to the user: how the records were encoded."""
        self.thinking = Thinking(about["thinking"])
        """``data.thinking``, on or off."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]


def key(
    data: DataConfig, seed: int, tokenizer: PreTrainedTokenizerBase, encoding: Encoding = SFT, version: int = FORMAT
) -> str:
    """Hash of all that the encoded training records depend on."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts: list[Any] = [
        version, __version__, data.template, data.train_on.value, data.max_length, data.format.value, data.only,
        data.mix,
        seed if data.mix else None,
        backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items()),
        tokenizer.chat_template, tokenizer.eos_token, tokenizer.bos_token,
    ]  # fmt: skip
    if data.thinking is not Thinking.auto:
        parts.append({"thinking": data.thinking.value})
    if encoding.name:
        parts.append(encoding.name)
    for source in (data.train, *(source for source, _ in mixture.mix(data))):
        file = Path(source).expanduser()
        parts.append(hashlib.sha256(file.read_bytes()).hexdigest() if is_file(source) else source)
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
    place = files.cache_folder("encoded")
    old, new = (place / key(data, seed, tokenizer, encoding, version) for version in (2, FORMAT))
    if not encodes:
        while (found := _stored(old, new)) is None:  # if the encoding process fails, the launcher ends this one
            time.sleep(0.05)
        return found
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{new}.lock"):  # another run may encode the same records
        if (found := _stored(old, new)) is not None:
            return found
        records = mixture.training(data, seed, encoding.read)
        resolved = thinking.resolve(data, records)
        known = {"thinking": resolved.thinking.value, "notes": rendering_notes.of(records, tokenizer, resolved)}
        target = new if rendering_notes.changed_since_2(records, tokenizer, resolved) else old
        if target.is_dir():  # version 2 stored what this one would
            files.write_json(target / "about.json", json.loads((target / "about.json").read_text()) | known)
            return Encoded(target)
        examples = _encoded(records, lambda record: encoding.encode(record, tokenizer, resolved), progress)
        with files.staged_folder(target) as staging:
            files.write_json(staging / "about.json", _write(examples, data.max_length, staging) | known)
    return Encoded(target)


def _stored(*folders: Path) -> Encoded | None:
    """What one of the folders has; one that version 2 wrote is only of use when its records are known to be encoded as they are now."""
    for folder in folders:
        if folder.is_dir() and "thinking" in json.loads((folder / "about.json").read_text()):
            return Encoded(folder)
    return None


def _encoded(
    records: list[Record], encode: Callable[[Record], list[Example]], progress: Callable[[int, int], None]
) -> Iterator[Example]:
    for number, record in enumerate(records, 1):
        yield from encode(record)
        if number % 100 == 0 or number == len(records):
            progress(number, len(records))


def _write(examples: Iterable[Example], max_length: int, staging: Path) -> dict[str, Any]:
    lengths, cut = [], Truncation()
    with ArrowWriter(path=str(staging / "data.arrow"), features=FEATURES) as writer:
        for whole in examples:
            example, lost = truncate(whole, max_length)
            writer.write(example)
            lengths.append(len(example["input_ids"]))
            cut += lost
        writer.finalize()
    return {"lengths": lengths, "truncation": vars(cut)}
