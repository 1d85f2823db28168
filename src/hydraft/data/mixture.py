"""The data section to conversations: one source or several mixed by weight."""

import random

from hydraft.config.schema import DataConfig
from hydraft.data.formats import Conversation, load
from hydraft.errors import ConfigError


def training(data: DataConfig, seed: int) -> list[Conversation]:
    """All training conversations of a run."""
    return [conversation for _, conversations in parts(data, seed) for conversation in conversations]


def parts(data: DataConfig, seed: int) -> list[tuple[str, list[Conversation]]]:
    """What each source gives: ``data.train`` is taken whole, each source of ``data.mix`` as its weight says.

    A weight's whole part repeats every record, its fraction draws that share of them, from ``seed``. ``data.only`` picks
    from all of that.
    """
    found = [(data.train, load(data.train, "data.train", data.format))]
    for source, weight in mix(data):
        more = load(source, "data.mix", data.format)
        whole, part = divmod(weight, 1)
        drawn = random.Random(f"{seed} {source}").sample(range(len(more)), round(part * len(more)))
        found.append((f"{source}*{weight:g}", more * int(whole) + [more[index] for index in sorted(drawn)]))
    of_tasks(data.only, [conversation for _, members in found for conversation in members], "data.train")
    return [(name, [c for c in members if not data.only or c.task in data.only]) for name, members in found]


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


def held_out(data: DataConfig) -> list[Conversation]:
    """The conversations that are scored and never trained on; none without ``data.eval``."""
    if data.eval is None:
        return []
    conversations = of_tasks(data.only, load(data.eval, "data.eval", data.format), "data.eval")
    limit = data.eval_limit
    if limit is None or limit >= len(conversations):
        return conversations
    return [conversations[index * len(conversations) // limit] for index in range(limit)]


def of_tasks(tasks: list[str], conversations: list[Conversation], setting: str) -> list[Conversation]:
    """The conversations of these tasks; all of them without any.

    Raises:
        ConfigError: a task that no conversation of ``setting`` has.
    """
    there = {conversation.task for conversation in conversations}
    for task in tasks:
        if task not in there:
            known = (
                ", ".join(sorted(str(other) for other in there if other is not None)) or "none: they need a 'task' key"
            )
            raise ConfigError(f"data.only={task}: no record of {setting} has this task (there are: {known})")
    return [conversation for conversation in conversations if not tasks or conversation.task in tasks]
