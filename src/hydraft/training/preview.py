"""``mode=preview``: prints examples with their trained tokens coloured, lengths, how full bins are, and what is truncated."""

import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase, logging

from hydraft.config.data import DataConfig
from hydraft.config.schema import Config
from hydraft.data import mixture, rendering_notes, thinking
from hydraft.data.batch import fill, group
from hydraft.data.encoding import Encoding
from hydraft.data.labels import IGNORE
from hydraft.data.preference_search import SIDES
from hydraft.data.records import Record
from hydraft.data.split_text import fit
from hydraft.data.tokenize import Example, Truncation
from hydraft.models import prepare
from hydraft.system import deferred_compile, hardware
from hydraft.system.plain_console import PlainConsole
from hydraft.training import deepspeed_ops
from hydraft.training.objectives.registry import make_objective

EXAMPLES = 3
BARS = 12
WIDTH = 40


def show(config: Config, console: Console | None = None) -> None:
    """Print the preview of a run's training data."""
    console = console or PlainConsole(file=sys.stdout)
    logging.set_verbosity_error()
    deferred_compile.prepare()
    os.environ.update(
        deepspeed_ops.environment(hardware.detect())
    )  # DeepSpeed, which others import, says what it guesses
    tokenizer = prepare.tokenizer(config.model)
    data = config.data
    encoding = make_objective(config.objective).encoding
    records = mixture.training(data, config.seed, encoding.read)
    data = thinking.resolve(data, records)
    found = survey(records, encoding, tokenizer, data)
    for title, example in titled(found.first, encoding.sequences):
        console.print(Text(title, style="bold"), coloured(example, tokenizer), sep="\n", end="\n\n")
    console.print(histogram(found.whole, data.max_length))
    lines = [
        *summary(data, records, found, encoding.sequences),
        *records.mixture.notes,
        *records.mixture.held_out_notes,
        *rendering_notes.of(records, tokenizer, data),
    ]
    for line in lines:
        console.print(Text(line), soft_wrap=True)  # a path may have brackets, which are no markup


@dataclass
class Found:
    """What encoding the records one by one found."""

    first: list[tuple[Example, int]] = field(default_factory=list)
    """The first examples, each with its tokens before truncation."""
    whole: "array[int]" = field(default_factory=lambda: array("I"))
    """Tokens of each example before truncation; of a long plain text, of each piece."""
    lengths: "array[int]" = field(default_factory=lambda: array("I"))
    """Tokens of each example."""
    trained: int = 0
    """Trained tokens."""
    split: int = 0
    """Plain texts that are split."""
    cut: Truncation = field(default_factory=Truncation)


def survey(
    records: Iterable[Record], encoding: Encoding, tokenizer: PreTrainedTokenizerBase, data: DataConfig
) -> Found:
    """Encode and truncate the records one by one."""
    found = Found()
    for record in records:
        examples = encoding.encode(record, tokenizer, data)
        fitted = list(fit(record, examples, data.max_length, encoding.cut))
        found.split += len(fitted) > len(examples)
        for index, (example, lost) in enumerate(fitted):
            size = len(example["input_ids"])
            full = size if len(fitted) > len(examples) else len(examples[index]["input_ids"])
            if len(found.first) < EXAMPLES * encoding.sequences:
                found.first.append((example, full))
            found.whole.append(full)
            found.lengths.append(size)
            found.trained += sum(label != IGNORE for label in example["labels"])
            found.cut += lost
    return found


def titled(first: Sequence[tuple[Example, int]], sequences: int = 1) -> Iterator[tuple[str, Example]]:
    """The first examples, each with a line above it; of a pair, the chosen one comes before the rejected one."""
    for index, (example, full) in enumerate(first):
        size, name = len(example["input_ids"]), f"example {index // sequences + 1}"
        if sequences == 2:
            name += f", {SIDES[index % 2]}"
        if "desirable" in example:
            name += f", {'desirable' if example['desirable'] else 'undesirable'}"
        yield f"{name} ({size}{f' of {full}' if full > size else ''} tokens)", example


def summary(data: DataConfig, records: mixture.TrainingRecords, found: Found, sequences: int = 1) -> list[str]:
    """The records of each source, the share of trained tokens, how full bins are, and what is cut or split."""
    parts, tokens = records.mixture.parts, sum(found.lengths)
    lines = [f"{len(part):,} records from {part.name}" for part in parts] if len(parts) > 1 else []
    lines.append(
        f"{len(records):,} records, {len(found.lengths):,} examples, {tokens:,} tokens, "
        f"{found.trained:,} trained ({found.trained / tokens:.0%})"
    )
    if data.packing:
        bins = group(list(found.lengths), sequences, data.max_length) or []
        lines.append(fill(list(found.lengths), bins, data.max_length * sequences))
    long = [str(found.cut)] if found.cut.records else []
    if found.split:
        long.append(f"{found.split:,} plain texts split, without loss")
    lines.append(f"data.max_length={data.max_length}: {'; '.join(long) or 'no record is longer'}")
    return lines


def coloured(example: Example, tokenizer: PreTrainedTokenizerBase) -> Text:
    """One example: trained tokens are green and underlined, the rest is dim.

    Consecutive tokens are decoded as one string, so that no character is split. If a label differs from the token (see
    ``tokenize.Piece``), both are shown.
    """
    text = Text()

    def add(ids: list[int], trained: bool) -> None:
        text.append(str(tokenizer.decode(ids)), style="green underline" if trained else "dim")

    run: list[int] = []
    trained = False
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        if (label != IGNORE) != trained or label not in (IGNORE, token):
            add(run, trained)
            run, trained = [], label != IGNORE
        if label in (IGNORE, token):
            run.append(token)
        else:
            add([label], True)
            run, trained = [token], False
    add(run, trained)
    return text


def histogram(lengths: Sequence[int], limit: int) -> Table:
    """A histogram of the lengths of examples in tokens; bars above ``limit`` are red."""
    step = max(1, -(-max(lengths) // BARS))
    counts = [0] * (max(lengths) // step + 1)
    for length in lengths:
        counts[length // step] += 1
    table = Table(title="tokens an example", title_justify="left", box=None, show_header=False)
    for index, count in enumerate(counts):
        low, high = index * step, index * step + step - 1
        bar = "█" * max(1 if count else 0, round(WIDTH * count / max(counts)))
        table.add_row(f"{low}–{high}", Text(bar, style="red" if low > limit else "cyan"), f"{count:,}")
    return table
