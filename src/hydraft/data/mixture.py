"""The records of a run: one source, or several mixed by weight. No torch."""

import random

from hydraft.config.data import DataConfig
from hydraft.data.load import load
from hydraft.data.named import RecordSettings
from hydraft.data.records import Read, Record
from hydraft.errors import ConfigError


def training(data: DataConfig, seed: int, read: Read | None = None, notes: list[str] | None = None) -> list[Record]:
    """All training records of a run.

    Args:
        read: makes a record from an object in the file; by default ``conversation_of``.
        notes: lines on how the records were read are added to it.
    """
    return [record for _, records in parts(data, seed, read, notes) for record in records]


def parts(
    data: DataConfig, seed: int, read: Read | None = None, notes: list[str] | None = None
) -> list[tuple[str, list[Record]]]:
    """The training records of each source: all of ``data.train``, and of each source of ``data.mix`` as many as its weight says.

    The integer part of a weight repeats every record; the fraction samples that share of the records, with ``seed``.
    ``data.only`` filters the result.
    """
    found = [(data.train, _load(data.train, "data.train", data, read, notes))]
    for source, weight in mix(data):
        more = _load(source, "data.mix", data, read, notes)
        whole, part = divmod(weight, 1)
        sampled = random.Random(f"{seed} {source}").sample(range(len(more)), round(part * len(more)))
        found.append((f"{source}*{weight:g}", more * int(whole) + [more[index] for index in sorted(sampled)]))
    of_tasks(data.only, [record for _, records in found for record in records], "data.train")
    return [(name, [r for r in records if not data.only or r.task in data.only]) for name, records in found]


def _load(source: str, setting: str, data: DataConfig, read: Read | None, notes: list[str] | None) -> list[Record]:
    return load(
        source,
        setting,
        data.format,
        read,
        RecordSettings(data.columns, data.labels, data.template, data.train_on),
        notes,
    )


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


def held_out(data: DataConfig, read: Read | None = None, notes: list[str] | None = None) -> list[Record]:
    """The records of ``data.eval``, which are evaluated and never trained; an empty list without ``data.eval``."""
    if data.eval is None:
        return []
    records = of_tasks(data.only, _load(data.eval, "data.eval", data, read, notes), "data.eval")
    limit = data.eval_limit
    if limit is None or limit >= len(records):
        return records
    return [records[index * len(records) // limit] for index in range(limit)]


def of_tasks(tasks: list[str], records: list[Record], setting: str) -> list[Record]:
    """The records of these tasks; all records if ``tasks`` is empty.

    Raises:
        ConfigError: no record of ``setting`` has one of the tasks.
    """
    known = {record.task for record in records}
    for task in tasks:
        if task not in known:
            names = ", ".join(sorted(str(other) for other in known if other is not None))
            listed = names or "none: they need a 'task' key"
            raise ConfigError(f"data.only={task}: no record of {setting} has this task (its tasks: {listed})")
    return [record for record in records if not tasks or record.task in tasks]
