"""What training would see: examples with the trained tokens coloured, lengths, bins, and what truncation would cut."""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase, logging

from hydraft.config.schema import Config, DataConfig
from hydraft.data import mixture
from hydraft.data.batch import fill, pack
from hydraft.data.formats import Conversation
from hydraft.data.labels import IGNORE
from hydraft.data.tokenize import Example, Truncation, encode_one, system_note, truncate
from hydraft.models import prepare

EXAMPLES = 3
BARS = 12
WIDTH = 40


def show(config: Config, console: Console | None = None) -> None:
    """Print the preview of a run's training data."""
    console = console or Console(file=sys.stdout)
    logging.set_verbosity_error()
    tokenizer = prepare.tokenizer(config.model)
    data = config.data
    parts = mixture.parts(data, config.seed)
    conversations = [conversation for _, members in parts for conversation in members]
    whole = [example for conversation in conversations for example in encode_one(conversation, tokenizer, data)]
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
    for line in summary(data, parts, kept):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(
        f"data.max_length={data.max_length}: {cut if cut.records else 'no record is longer'}", highlight=False
    )
    if note := system_note(conversations, tokenizer, data):
        console.print(note, highlight=False, soft_wrap=True)


def summary(data: DataConfig, parts: list[tuple[str, list[Conversation]]], kept: list[Example]) -> list[str]:
    """What each source gives, how much of it is trained, and how full the bins are."""
    lengths = [len(example["input_ids"]) for example in kept]
    trained = sum(label != IGNORE for example in kept for label in example["labels"])
    records = sum(len(members) for _, members in parts)
    lines = [f"{len(members):,} records from {source}" for source, members in parts] if len(parts) > 1 else []
    lines.append(
        f"{records:,} records, {len(kept):,} examples, {sum(lengths):,} tokens, "
        f"{trained:,} trained ({trained / sum(lengths):.0%})"
    )
    if data.packing:
        lines.append(fill(lengths, pack(lengths, data.max_length), data.max_length))
    return lines


def coloured(example: Example, tokenizer: PreTrainedTokenizerBase) -> Text:
    """One example: what is to be said is green and underlined, the rest dim.

    Runs are decoded whole, so no character is torn. Where another token is to be said than the one that stands there (see
    ``encode.Piece``), both are shown.
    """
    text = Text()

    def add(ids: list[int], said: bool) -> None:
        text.append(str(tokenizer.decode(ids)), style="green underline" if said else "dim")

    run: list[int] = []
    said = False
    for token, label in zip(example["input_ids"], example["labels"], strict=True):
        if (label != IGNORE) != said or label not in (IGNORE, token):
            add(run, said)
            run, said = [], label != IGNORE
        if label in (IGNORE, token):
            run.append(token)
        else:
            add([label], True)
            run, said = [token], False
    add(run, said)
    return text


def histogram(lengths: list[int], limit: int) -> Table:
    """How long the examples are, in tokens; bars past ``limit`` are red."""
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
