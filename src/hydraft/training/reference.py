"""Log-probabilities of the reference, the model before training, of all documents of a run: computed once and kept in the cache.

They depend on the encoded records, the base, its precision and quantisation, and on the adapter that the run starts from; the key is a
hash of these. The run's folder has a copy: a resumed run has no model before training any more.

Shapes: D documents of a run, those of the training records first.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from hydraft.config.schema import Config
from hydraft.data import held_out
from hydraft.data.examples import Examples, Item
from hydraft.data.records import Record
from hydraft.evaluation.batches import chunks, of_this_rank
from hydraft.models import base_identity
from hydraft.models.adapter_files import SETTINGS, WEIGHTS
from hydraft.system import cache_entries, files

FORMAT = 1
"""Increased when the same documents get other log-probabilities."""

NAME = "reference.safetensors"


class Documents:
    """The documents of a run, in items that are never split: those of the training records, and then the held-out ones."""

    def __init__(self, examples: Examples, lengths: Sequence[int], held: list[Item]) -> None:
        """Number the held-out documents, too.

        Args:
            examples: of the training records.
            lengths: tokens of each.
            held: held-out items, which are changed.
        """
        self.examples, self.held, self.sequences = examples, held, len(examples.filler)
        self.items = len(lengths) * (1 if examples.mismatched is None else 2) // self.sequences
        """Items of training records."""
        self.lengths = [max(lengths[start : start + self._members]) for start in range(0, len(lengths), self._members)]
        for place, item in enumerate(held):
            for side, example in enumerate(item):
                example["index"] = (self.items + place) * self.sequences + side
        self.lengths += [max(len(example["input_ids"]) for example in item) for item in held]

    @property
    def _members(self) -> int:
        """Examples of an item."""
        return self.sequences // (1 if self.examples.mismatched is None else 2)

    def __len__(self) -> int:
        return len(self.lengths) * self.sequences

    def __getitem__(self, item: int) -> Item:
        """The documents of an item."""
        if item >= self.items:
            return self.held[item - self.items]
        first = item * self._members
        return [each for member in range(first, first + self._members) for each in self.examples.documents(member)]


def key(config: Config, records: str, held: Sequence[Record]) -> str | None:
    """Hash of all that the log-probabilities depend on; None if the base is not known.

    Args:
        records: the key of the encoded records.
        held: the held-out records.
    """
    base = base_identity.fingerprint(config.model, config.seed)
    if base is None:
        return None
    parts = [
        FORMAT, records, [held_out.digest(record, 0) for record in held], base, _start(config), repr(config.quant),
        config.train.precision.value, config.model.dtype.value, repr(config.kernels),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _start(config: Config) -> Any:
    """What identifies the adapter before training: nothing if the model is the bare base then."""
    lora = config.lora
    if lora.start is not None:
        return [hashlib.sha256(Path(lora.start, name).read_bytes()).hexdigest() for name in (SETTINGS, WEIGHTS)]
    return None if lora.starts_as_base else [repr(lora), config.seed]


@dataclass(frozen=True)
class Store:
    """Where the log-probabilities of a run are kept."""

    folder: Path
    """Of the run."""
    key: str | None
    """Of the cache."""

    @property
    def file(self) -> Path:
        """In the run's folder."""
        return self.folder / NAME

    def load(self, count: int) -> torch.Tensor | None:
        """What is kept of ``count`` documents, in the run's folder or in the cache, (D,); None if there is nothing."""
        found = _read(self.file, self.key, count)
        if found is not None or self.key is None:
            return found
        entry = files.cache_folder("reference") / self.key
        if not cache_entries.exists(entry) or cache_entries.fault(entry, lambda _: "it has no seal") is not None:
            return None
        return _read(entry / NAME, self.key, count)

    def keep(self, values: torch.Tensor) -> None:
        """Write log-probabilities, (D,), to the run's folder and to the cache."""
        content = save({"log_probs": values.cpu()}, {"key": self.key or ""})
        files.write_bytes(self.file, content)
        if self.key is None:
            return
        entry = files.cache_folder("reference") / self.key
        with cache_entries.locked(entry):
            cache_entries.clear(entry)
            with files.staged_folder(entry) as staging:
                (staging / NAME).write_bytes(content)
            cache_entries.seal(entry)


def _read(file: Path, known: str | None, count: int) -> torch.Tensor | None:
    try:
        with safe_open(file, "pt") as stored:
            values: torch.Tensor = stored.get_tensor("log_probs")
            same = (stored.metadata() or {}).get("key") == (known or "")
    except (OSError, SafetensorError):
        return None
    return values if same and len(values) == count else None


@torch.no_grad()
def compute(
    model: torch.nn.Module,
    documents: Documents,
    size: int,
    sums: Callable[[torch.nn.Module, list[Item]], tuple[torch.Tensor, torch.Tensor]],
    done: Callable[[int], None],
) -> torch.Tensor:
    """The log-probability of each document under ``model``, (D,), in fp64. Every rank must call it; all get the same.

    The number of ranks changes which rank takes a batch, never the batches.

    Args:
        size: items of a batch.
        sums: the log-probabilities of the documents of items, and their numbers.
        done: called with the number of items that all ranks have finished.
    """
    batches = chunks(documents.lengths, lambda _: size)
    found: torch.Tensor | None = None
    model.eval()
    for number, counts, current in of_this_rank(len(batches)):
        values, index = sums(model, [documents[item] for item in batches[number]])
        if found is None:
            found = torch.zeros(len(documents), dtype=torch.float64, device=values.device)
        if counts:
            found[index] = values
        done(sum(len(batches[other]) for other in current))
    model.train()
    assert found is not None, "a run has records"
    dist.all_reduce(found)  # exact: each number is added to zeros
    return found
