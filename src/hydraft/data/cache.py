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
        self.key = folder.name
        """The cache's key."""
        self.rows = datasets.Dataset.from_file(str(folder / "data.arrow"))
        about = json.loads((folder / "about.json").read_text())
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


def key(data: DataConfig, seed: int, tokenizer: PreTrainedTokenizerBase, encoding: Encoding = SFT) -> str:
    """Hash of all that the encoded training records depend on."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts: list[Any] = [
        FORMAT, __version__, data.template, data.train_on.value, data.max_length, data.format.value, data.only,
        data.mix, data.thinking.value,
        seed if data.mix else None,
        backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items()),
        tokenizer.chat_template, tokenizer.eos_token, tokenizer.bos_token,
    ]  # fmt: skip
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
            examples = _encoded(records, lambda record: encoding.encode(record, tokenizer, resolved), progress)
            with files.staged_folder(target) as staging:
                _write(examples, resolved, lambda: rendering_notes.of(records, tokenizer, resolved), staging)
    return Encoded(target)


def _encoded(
    records: list[Record], encode: Callable[[Record], list[Example]], progress: Callable[[int, int], None]
) -> Iterator[Example]:
    for number, record in enumerate(records, 1):
        yield from encode(record)
        if number % 100 == 0 or number == len(records):
            progress(number, len(records))


def _write(examples: Iterable[Example], data: DataConfig, notes_of: Callable[[], list[str]], staging: Path) -> None:
    lengths, cut = [], Truncation()
    with ArrowWriter(path=str(staging / "data.arrow"), features=FEATURES) as writer:
        for whole in examples:
            example, lost = truncate(whole, data.max_length)
            writer.write(example)
            lengths.append(len(example["input_ids"]))
            cut += lost
        writer.finalize()
    about = {"lengths": lengths, "truncation": vars(cut), "notes": notes_of(), "thinking": data.thinking.value}
    files.write_json(staging / "about.json", about)
