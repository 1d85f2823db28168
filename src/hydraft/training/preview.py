"""``mode=preview``: prints examples with their trained tokens coloured, lengths, how full bins are, and what is truncated."""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase, logging

from hydraft.config.data import DataConfig
from hydraft.config.schema import Config
from hydraft.data import mixture, rendering_notes, thinking
from hydraft.data.batch import fill, group
from hydraft.data.labels import IGNORE
from hydraft.data.records import Record
from hydraft.data.tokenize import Example, Truncation, truncate
from hydraft.models import prepare
from hydraft.system.library_logs import quiet_bitsandbytes
from hydraft.training.objectives.registry import make_objective

EXAMPLES = 3
BARS = 12
WIDTH = 40


def show(config: Config, console: Console | None = None) -> None:
    """Print the preview of a run's training data."""
    console = console or Console(file=sys.stdout)
    logging.set_verbosity_error()
    quiet_bitsandbytes()
    tokenizer = prepare.tokenizer(config.model)
    data = config.data
    encoding = make_objective(config.objective).encoding
    parts = mixture.parts(data, config.seed, encoding.read)
    records = [record for _, members in parts for record in members]
    data = thinking.resolve(data, records)
    whole = [example for record in records for example in encoding.encode(record, tokenizer, data)]
    kept, cut = [], Truncation()
    for example in whole:
        shorter, lost = truncate(example, data.max_length)
        kept.append(shorter)
        cut += lost
    for number in range(min(EXAMPLES, len(kept))):
        size, full = len(kept[number]["input_ids"]), len(whole[number]["input_ids"])
        title = f"example {number + 1} ({size}{f' of {full}' if full > size else ''} tokens)"
        console.print(Text(title, style="bold"), coloured(kept[number], tokenizer), sep="\n", end="\n\n")
    console.print(histogram([len(example["input_ids"]) for example in whole], data.max_length))
    for line in summary(data, parts, kept, encoding.sequences):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(
        f"data.max_length={data.max_length}: {cut if cut.records else 'no record is longer'}", highlight=False
    )
    for note in rendering_notes.of(records, tokenizer, data):
        console.print(note, highlight=False, soft_wrap=True)


def summary(
    data: DataConfig, parts: list[tuple[str, list[Record]]], kept: list[Example], sequences: int = 1
) -> list[str]:
    """The records of each source, the share of trained tokens, and how full bins are."""
    lengths = [len(example["input_ids"]) for example in kept]
    trained = sum(label != IGNORE for example in kept for label in example["labels"])
    records = sum(len(members) for _, members in parts)
    lines = [f"{len(members):,} records from {source}" for source, members in parts] if len(parts) > 1 else []
    lines.append(
        f"{records:,} records, {len(kept):,} examples, {sum(lengths):,} tokens, "
        f"{trained:,} trained ({trained / sum(lengths):.0%})"
    )
    if data.packing:
        bins = group(lengths, sequences, data.max_length) or []
        lines.append(fill(lengths, bins, data.max_length * sequences))
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


def histogram(lengths: list[int], limit: int) -> Table:
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
