"""The records of a run, encoded as in training: those that a quantisation is calibrated on, and those that its loss is measured with."""

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from hydraft.config.infer import InferConfig
from hydraft.config.schema import load_config
from hydraft.data import mixture
from hydraft.data.labels import IGNORE
from hydraft.data.records import Record
from hydraft.data.tokenize import Example
from hydraft.errors import ConfigError
from hydraft.infer.load import tokenizer_and_data
from hydraft.infer.source import Source
from hydraft.system.plain_console import PlainConsole
from hydraft.training.objectives.registry import make_objective

MEASURED = 128
"""Records that the loss is measured with, at most."""


@dataclass(frozen=True)
class RunRecords:
    """Records of one or several runs."""

    calibration: list[Example]
    """Of a preference pair, both sequences."""
    measured: list[Example]
    """Each has a trained token."""
    held_out: bool
    """Whether ``measured`` was held out of the training of every run."""

    @property
    def described(self) -> str:
        """``measured`` in words."""
        return f"{len(self.measured)} {'held-out' if self.held_out else 'training'} sequences"


def read(source: Source, options: InferConfig) -> RunRecords:
    """The records of the source's run, or of the runs that it was combined from, in equal parts.

    Raises:
        ConfigError: they cannot be read any more.
    """
    tokenizer, _ = tokenizer_and_data(source, PlainConsole(stderr=True))
    sources = source.combined.sources if source.combined else [source]
    runs = list(dict.fromkeys(each.run for each in sources if each.run is not None))
    wanted = options.export.calibration if options.export.quant and options.export.quant.calibrated else 0
    parts = [_of_run(run, source, tokenizer, -(-wanted // len(runs)), -(-MEASURED // len(runs))) for run in runs]
    measured = [example for part in parts for example in part.measured]
    if not measured:
        raise ConfigError(f"export.quant: the records of {runs[0]} have no answers to measure the loss with")
    return RunRecords(
        [example for part in parts for example in part.calibration], measured, all(part.held_out for part in parts)
    )


def _of_run(run: Path, source: Source, tokenizer: PreTrainedTokenizerBase, wanted: int, measured: int) -> RunRecords:
    config = load_config(run / "config.yaml")
    objective = make_objective(config.objective)
    data = dataclasses.replace(config.data, template=source.template, thinking=source.thinking)

    def encoded(records: Collection[Record], count: int, skipped: float = 0.0) -> Iterator[Example]:
        for record in _spread(records, count, skipped):
            whole = objective.encoding.encode(record, tokenizer, data)
            yield from (example for example, _ in objective.encoding.cut(whole, data.max_length))

    try:
        trained = mixture.training(config.data, config.seed, objective.read)
        kept = mixture.held_out(config.data, config.seed, objective.read)
        # Without held-out records: those between the ones of the calibration.
        of = encoded(kept, measured) if kept else encoded(trained, measured, 0.5)
        return RunRecords(
            list(encoded(trained, wanted)) if wanted else [],
            [example for example in of if any(label != IGNORE for label in example["labels"][1:])],
            bool(kept),
        )
    except ConfigError as error:
        raise ConfigError(f"export.quant: needs the records of {run}: {error}") from error


def _spread(records: Collection[Record], count: int, skipped: float) -> Iterator[Record]:
    """At most ``count`` records, evenly spread, the first one after ``skipped`` of a step between two."""
    size = len(records)
    count = min(count, size)
    chosen = {int((number + skipped) * size / count) for number in range(count)}
    return (record for number, record in enumerate(records) if number in chosen)
