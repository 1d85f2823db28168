"""Encoded records, once: the first process encodes into a cache, every other and every later run reads from there.

The key is what the tokens depend on: the sources' contents, the data section, the tokenizer and its template. Ranks wait for files, not in a collective,
so that no timeout limits how long encoding may take.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from hydraft.config.schema import DataConfig
from hydraft.data import mixture
from hydraft.data.formats import Conversation, is_file
from hydraft.data.tokenize import Example, Truncation, encode_one, system_note, truncate
from hydraft.system import files
from hydraft.system.version import __version__

FEATURES = datasets.Features(
    {"input_ids": datasets.List(datasets.Value("int32")), "labels": datasets.List(datasets.Value("int32"))}
)


FORMAT = 2
"""Raised whenever the same records come to other tokens, or stand in other files."""


class Encoded(Sequence[Example]):
    """Encoded records on the disk, read as they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.key = folder.name
        """Hash of all that the records depend on."""
        self.rows = datasets.Dataset.from_file(str(folder / "data.arrow"))
        about = json.loads((folder / "about.json").read_text())
        self.lengths: list[int] = about["lengths"]
        """Tokens of each record."""
        self.truncation = Truncation(**about["truncation"])
        """What was cut from all of them."""
        self.notes: list[str] = about["notes"]
        """What a person should know of how they were encoded, a line each."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]


def key(data: DataConfig, seed: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of all that the encoded training records depend on."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts: list[Any] = [
        FORMAT, __version__, data.template, data.train_on.value, data.max_length, data.format.value, data.only, data.mix, seed if data.mix else None,
        backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items()),
        tokenizer.chat_template, tokenizer.eos_token, tokenizer.bos_token,
    ]  # fmt: skip
    for source in (data.train, *(source for source, _ in mixture.mix(data))):
        file = Path(source).expanduser()
        parts.append(hashlib.sha256(file.read_bytes()).hexdigest() if is_file(source) else source)
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:32]


def training(
    data: DataConfig, seed: int, tokenizer: PreTrainedTokenizerBase, encodes: bool, progress: Callable[[int, int], None]
) -> Encoded:
    """The encoded training records of a run.

    Args:
        encodes: whether this process encodes what is not there (one a machine); the others wait for it.
        progress: told ``(done, total)`` records now and then.
    """
    target = files.cache_folder("encoded") / key(data, seed, tokenizer)
    if not encodes:
        while not target.is_dir():  # the launcher ends this process if the one that encodes fails
            time.sleep(0.05)
        return Encoded(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # another run may be at the same records
        if not target.is_dir():
            conversations = mixture.training(data, seed)
            with files.staged_folder(target) as staging:
                _write(conversations, tokenizer, data, staging, progress)
    return Encoded(target)


def _write(
    conversations: list[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    data: DataConfig,
    staging: Path,
    progress: Callable[[int, int], None],
) -> None:
    lengths, cut = [], Truncation()
    with ArrowWriter(path=str(staging / "data.arrow"), features=FEATURES) as writer:
        for number, conversation in enumerate(conversations, 1):
            for whole in encode_one(conversation, tokenizer, data):
                example, lost = truncate(whole, data.max_length)
                writer.write(example)
                lengths.append(len(example["input_ids"]))
                cut += lost
            if number % 100 == 0 or number == len(conversations):
                progress(number, len(conversations))
        writer.finalize()
    note = system_note(conversations, tokenizer, data)
    about = {"lengths": lengths, "truncation": vars(cut), "notes": [note] if note else []}
    files.write_json(staging / "about.json", about)
