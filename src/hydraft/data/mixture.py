"""The records of a run: one source, or several mixed by weight, and those that are held out of them. No torch."""

import random
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from hydraft.config.data import DataConfig
from hydraft.data import held_out as holding
from hydraft.data.load import Records
from hydraft.data.named import RecordSettings
from hydraft.data.records import Read, Record
from hydraft.errors import ConfigError


class Mixture:
    """The training and the held-out records of a run, as the data section describes them."""

    def __init__(self, data: DataConfig, seed: int, read: Read | None = None) -> None:
        """``read`` makes a record from an object in the file (by default ``conversation_of``).

        Raises:
            ConfigError: an entry of ``data.mix`` has no weight, there is no such source, or ``data.eval`` is no share, and one is needed.
        """
        self.data = data
        self.seed = seed
        self.eval_seed = holding.seed_of(data, seed)
        self.share = holding.share(data)
        if self.share is None and data.eval_seed is not None:
            raise ConfigError(
                f"data.eval_seed={data.eval_seed} chooses a share of the training records, and data.eval={data.eval} is none: "
                "use data.eval=5%, or data.eval_seed=null"
            )
        self.read = read
        self.parts = [Part(data.train, self, self._records(data.train, "data.train"), 1, data.train)]
        for source, weight in mix(data):
            self.parts.append(Part(f"{source}*{weight:g}", self, self._records(source, "data.mix"), weight, source))
        if data.only:
            _check_tasks(data.only, (task for part in self.parts for task in part.records.survey.tasks), "data.train")

    @cached_property
    def withheld(self) -> frozenset[int]:
        """The digests of the training records that ``data.eval`` holds out: its share of each source."""
        found: set[int] = set()
        if self.share is not None:
            for number, part in enumerate(self.parts):
                digests = (holding.digest(record, self.eval_seed) for record in part.each())
                found |= holding.chosen(digests, self.share, at_least=1 if number == 0 else 0)
        return frozenset(found)

    @cached_property
    def held_out(self) -> list[Record]:
        """The records that are evaluated and never trained; none without ``data.eval``.

        Raises:
            ConfigError: they cannot be read, or no training record would be left.
        """
        if self.share is None:
            found = list(self._held_out_file)
        else:
            found, trained = [], 0
            for record in chain.from_iterable(part.each() for part in self.parts):
                if self.withholds(record):
                    found.append(record)
                else:
                    trained += 1
            if not trained:
                raise ConfigError(
                    f"data.eval={self.data.eval}: would hold out every training record; use a smaller share"
                )
        limit = self.data.eval_limit
        if limit is None or limit >= len(found):
            return found
        return [found[index * len(found) // limit] for index in range(limit)]

    def withholds(self, record: Record) -> bool:
        """Whether a training record is held out."""
        return bool(self.withheld) and holding.digest(record, self.eval_seed) in self.withheld

    def selects(self, record: Record) -> bool:
        """Whether a record has a task of ``data.only``."""
        return not self.data.only or record.task in self.data.only

    @property
    def notes(self) -> list[str]:
        """What a user should know about how the training records were read."""
        lines = [note for part in self.parts for note in part.records.notes]
        if self.share is not None:
            count = len(self.held_out)
            held = "1 record is" if count == 1 else f"{count:,} records are"
            lines.append(f"data.eval={self.data.eval}: {held} held out of the training records")
        return list(dict.fromkeys(lines))

    @property
    def held_out_notes(self) -> list[str]:
        """The same about the held-out records, if they have a file of their own."""
        return [] if self._eval is None else self._eval.notes

    @cached_property
    def _eval(self) -> Records | None:
        return None if self.data.eval is None or self.share is not None else self._records(self.data.eval, "data.eval")

    @property
    def _held_out_file(self) -> Iterator[Record]:
        if self._eval is None:
            return iter(())
        if self.data.only:
            _check_tasks(self.data.only, self._eval.survey.tasks, "data.eval")
        return filter(self.selects, self._eval)

    def _records(self, source: str, setting: str) -> Records:
        data = self.data
        settings = RecordSettings(data.columns, data.labels, data.template, data.train_on, data.on_bad_record)
        return Records(source, setting, data.format, self.read, settings)


@dataclass(frozen=True)
class Part:
    """The training records of one source, read anew on each iteration: they need not fit into memory."""

    name: str
    mixture: Mixture
    records: Records
    weight: float
    """The integer part repeats every record; the fraction samples that share of the records, with the seed."""
    source: str

    def __iter__(self) -> Iterator[Record]:
        whole, part = divmod(self.weight, 1)
        for _ in range(int(whole)):
            yield from filter(self._trains, self.records)
        if part:
            sampled = bytearray(len(self.records))
            for index in random.Random(f"{self.mixture.seed} {self.source}").sample(
                range(len(sampled)), round(part * len(sampled))
            ):
                sampled[index] = 1
            pairs = zip(self.records, sampled, strict=True)
            yield from (record for record, taken in pairs if taken and self._trains(record))

    def __len__(self) -> int:
        whole, part = divmod(self.weight, 1)
        if self.mixture.share is not None or (part and self.mixture.data.only):
            return sum(1 for _ in self)
        only, tasks = self.mixture.data.only, self.records.survey.tasks
        count = sum(number for task, number in tasks.items() if not only or task in only)
        return int(whole) * count + round(part * count)

    def each(self) -> Iterator[Record]:
        """The records of the source, each once, those that are held out too."""
        return filter(self.mixture.selects, self.records)

    def _trains(self, record: Record) -> bool:
        return self.mixture.selects(record) and not self.mixture.withholds(record)


class TrainingRecords(Collection[Record]):
    """All training records of a run, read anew on each iteration."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture = mixture

    def __iter__(self) -> Iterator[Record]:
        return chain.from_iterable(self.mixture.parts)

    def __contains__(self, record: object) -> bool:
        return any(record == other for other in self)

    @cached_property
    def _count(self) -> int:
        return sum(map(len, self.mixture.parts))

    def __len__(self) -> int:
        return self._count


def training(data: DataConfig, seed: int, read: Read | None = None) -> TrainingRecords:
    """All training records of a run; ``read`` makes a record from an object in the file (by default ``conversation_of``)."""
    return TrainingRecords(Mixture(data, seed, read))


def held_out(data: DataConfig, seed: int, read: Read | None = None) -> list[Record]:
    """The held-out records of a run: those of ``data.eval``, or its share of the training records."""
    return Mixture(data, seed, read).held_out


def mix(data: DataConfig) -> list[tuple[str, float]]:
    """The sources of ``data.mix`` and their weights.

    Raises:
        ConfigError: an entry is not ``source*weight`` with a weight above 0.
    """
    pairs = []
    for entry in data.mix:
        source, _, weight = entry.rpartition("*")
        try:
            pairs.append((source, float(weight)))
        except ValueError:
            source = ""
        if not source or not 0 < pairs[-1][1] <= 1000:
            raise ConfigError(f"data.mix: {entry!r} must be source*weight, such as more.json*0.5")
    return pairs


def _check_tasks(tasks: list[str], found: Iterable[str | None], setting: str) -> None:
    known = set(found)
    for task in tasks:
        if task not in known:
            names = ", ".join(sorted(str(other) for other in known if other is not None))
            listed = names or "none: they need a 'task' key"
            raise ConfigError(f"data.only={task}: no record of {setting} has this task (its tasks: {listed})")
