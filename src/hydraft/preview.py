"""What training would see: examples with the trained tokens coloured, lengths, and what truncation would cut."""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase, logging

from hydraft import prepare
from hydraft.config import Config
from hydraft.data import sources
from hydraft.data.encode import IGNORE, Example, Truncation, encode_one, truncate

EXAMPLES = 3
BARS = 12
WIDTH = 40


def show(config: Config, console: Console | None = None) -> None:
    """Print the preview of a run's training data."""
    console = console or Console(file=sys.stdout)
    logging.set_verbosity_error()
    tokenizer = prepare.tokenizer(config.model)
    conversations = sources.training(config.data, config.seed)
    whole = [example for conversation in conversations for example in encode_one(conversation, tokenizer, config.data)]
    cut = Truncation()
    for number, example in enumerate(whole):
        kept, lost = truncate(example, config.data.max_length)
        cut += lost
        if number < EXAMPLES:
            console.print(coloured(kept, tokenizer, number + 1), end="\n\n")
    console.print(histogram([len(example["input_ids"]) for example in whole], config.data.max_length))
    trained = sum(label != IGNORE for example in whole for label in example["labels"])
    total = sum(len(example["input_ids"]) for example in whole)
    console.print(
        f"{len(conversations):,} records, {len(whole):,} examples, {total:,} tokens, {trained:,} trained ({trained / total:.0%})",
        highlight=False,
    )
    console.print(f"data.max_length={config.data.max_length}: {cut}", highlight=False)


def coloured(example: Example, tokenizer: PreTrainedTokenizerBase, number: int) -> Text:
    """One example: trained tokens green and underlined, the rest dim. Runs are decoded whole, so no character is torn."""
    text = Text(f"example {number} ({len(example['input_ids'])} tokens)\n", style="bold")
    ids, labels = example["input_ids"], example["labels"]
    start = 0
    while start < len(ids):
        trained = labels[start] != IGNORE
        end = start
        while end < len(ids) and (labels[end] != IGNORE) == trained:
            end += 1
        text.append(str(tokenizer.decode(ids[start:end])), style="green underline" if trained else "dim")
        start = end
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
