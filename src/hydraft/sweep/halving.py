"""Successive halving and Hyperband: to which optimizer step candidates train, and which of them train on. No torch.

A rung is an optimizer step. All candidates of a bracket train to its first rung; the best 1/η of them train on to the next one, and
so on, and those of the last rung to their end. Rungs are synchronous, as in Jamieson and Talwalkar (arXiv:1502.07943) and in
Hyperband (Li et al., arXiv:1603.06560): a candidate that has reached a rung is saved and waits, without a place, until all have.
ASHA (Li et al., arXiv:1810.05934) lets the first ones train on before the others are known, so that no worker waits for a slow one.
Here candidates take turns at a few places, which stay taken until the last group of a rung, so deciding early would gain little
time and would train candidates on that are not among the best.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydraft.errors import ConfigError

KINDS = ("successive_halving", "hyperband")
"""Pruners of ``hydra.sweeper.pruner`` that this module decides for."""

Keep = Callable[[int, int], int]
"""How many candidates train on, from the number of the rung and the number of candidates that have reached it."""


@dataclass(frozen=True)
class Options:
    """Settings of the pruner: ``hydra.sweeper.pruner_options``, with Optuna's names."""

    reduction_factor: int = 3
    """η: of the candidates at a rung, 1/η train on. The bound of Hyperband's authors is lowest for e; they recommend 3 or 4."""
    min_resource: int | None = None
    """The first rung, in optimizer steps. None: ``train.eval_every``."""


def options(pruner: str, given: dict[str, Any]) -> Options:
    """The settings of ``pruner``.

    Raises:
        ConfigError: there is no such setting, or its value is not possible.
    """
    name = f"hydra.sweeper.pruner_options={given}"
    if unknown := sorted(given.keys() - {"reduction_factor", "min_resource"}):
        raise ConfigError(f"{name}: {pruner} has no {unknown[0]}, only min_resource (steps) and reduction_factor")
    for key, least in (("reduction_factor", 2), ("min_resource", 1)):
        if (value := given.get(key)) is not None and (type(value) is not int or value < least):
            raise ConfigError(f"{name}: {key} must be a whole number, at least {least}")
    return Options(**{key: value for key, value in given.items() if value is not None})


def first_rung(pruner: str, chosen: Options, eval_every: Any) -> int:
    """The first rung, a step at which candidates are evaluated.

    Raises:
        ConfigError: candidates are not evaluated there.
    """
    if type(eval_every) is not int:
        raise ConfigError(
            f"hydra.sweeper.pruner={pruner}: rungs are optimizer steps: set train.eval_every to a number of steps"
        )
    first = chosen.min_resource or eval_every
    if first % eval_every:
        raise ConfigError(
            f"hydra.sweeper.pruner_options.min_resource={first}: must be a multiple of train.eval_every={eval_every}"
        )
    return first


def rungs(first: int, steps: int, factor: int) -> tuple[int, ...]:
    """The rungs before the end of a run of ``steps``: first · η^k, the last of them at most ``steps`` / η.

    A single rung at ``first`` if ``steps`` is below first · η; none if it is not above ``first``.
    """
    found = [first] if first < steps else []
    while found and found[-1] * factor * factor <= steps:
        found.append(found[-1] * factor)
    return tuple(found)


def sizes(pruner: str, trials: int, levels: int, factor: int) -> list[tuple[int, int]]:
    """The brackets for ``trials`` candidates: the number of candidates of each, and the number of its first rung.

    Args:
        pruner: with ``successive_halving`` there is one bracket, with all candidates. Hyperband has one for each possible first
            rung, s = s_max … 0, with ⌈(s_max + 1) / (s + 1) · η^s⌉ candidates (arXiv:1603.06560, algorithm 1), and begins again
            while there are candidates.
        trials: candidates in all.
        levels: number of rungs before the end: s_max.
        factor: η.
    """
    if pruner != "hyperband":
        return [(trials, 0)]
    found, left = list[tuple[int, int]](), trials
    while left > 0:
        for s in range(levels, -1, -1):
            size = min(left, math.ceil((levels + 1) / (s + 1) * factor**s))
            if size:
                found.append((size, levels - s))
            left -= size
    return found


def one_round(levels: int, factor: int) -> int:
    """Candidates of all brackets of Hyperband together, once."""
    return sum(math.ceil((levels + 1) / (s + 1) * factor**s) for s in range(levels + 1))


@dataclass
class Member:
    """A candidate in a bracket."""

    number: int
    level: int
    """Number of the rung that it trains to; the number of rungs if it trains to its end."""
    values: dict[int, float] = field(default_factory=dict)
    """Its objective at each rung that it has reached."""
    over: bool = False
    """Whether it has ended: complete, pruned or failed."""


@dataclass
class Bracket:
    """Candidates that are compared with each other."""

    size: float
    """Candidates in all; infinite while that is not decided."""
    first: int = 0
    """Number of its first rung."""
    members: list[Member] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether no more candidates come."""
        return len(self.members) >= self.size

    @property
    def live(self) -> list[Member]:
        """The members that have not ended."""
        return [member for member in self.members if not member.over]


class Halving:
    """The state of all brackets of a search."""

    def __init__(self, steps: Sequence[int], minimize: bool, planned: Sequence[tuple[float, int]], keep: Keep) -> None:
        """Create it.

        Args:
            steps: the rungs.
            minimize: whether lower is better.
            planned: the brackets, from ``sizes``; the size of further ones is decided while they run.
            keep: how many train on.
        """
        self.steps = tuple(steps)
        self.minimize = minimize
        self.planned = list(planned)
        self.keep = keep
        self.brackets: list[Bracket] = []
        self.members: dict[int, Member] = {}

    @property
    def open(self) -> Bracket | None:
        """The bracket that new candidates enter, if one is begun and not full."""
        return self.brackets[-1] if self.brackets and not self.brackets[-1].full else None

    def enter(self, number: int) -> tuple[int, Member]:
        """Add a candidate; returns the number of its bracket, too."""
        if self.open is None:
            self._begin()
        member = self.members[number] = Member(number, self.brackets[-1].first)
        self.brackets[-1].members.append(member)
        return len(self.brackets) - 1, member

    def restore(self, bracket: int, member: Member) -> None:
        """Add a candidate of an earlier command."""
        while len(self.brackets) <= bracket:
            self._begin()
        self.members[member.number] = member
        self.brackets[bracket].members.append(member)

    def _begin(self) -> None:
        made = len(self.brackets)
        self.brackets.append(Bracket(*(self.planned[made] if made < len(self.planned) else (math.inf, 0))))

    def stop(self, number: int) -> int | None:
        """The step after which a candidate stops for now; None if it trains to its end."""
        level = self.members[number].level
        return self.steps[level] if level < len(self.steps) else None

    def waits(self, number: int) -> bool:
        """Whether a candidate has reached its rung."""
        member = self.members[number]
        return not member.over and member.level in member.values

    def reached(self, number: int, step: int, value: float) -> None:
        """Record the objective of a candidate after ``step``; ignored where there is no rung. NaN is the worst."""
        if step in self.steps:
            worst = math.inf if self.minimize else -math.inf
            self.members[number].values[self.steps.index(step)] = worst if math.isnan(value) else value

    def close(self) -> None:
        """No more candidates enter the open bracket."""
        if self.open is not None:
            self.open.size = len(self.open.members)

    def decide(self, running: Collection[int] = ()) -> tuple[list[Member], list[Member]]:
        """At each rung that all have reached: those that train on, which now have their next rung, and those that end here.

        ``running``: candidates that have not ended yet; one that has logged its objective is still saving.
        """
        on, out = list[Member](), list[Member]()
        for bracket in self.brackets:
            live = bracket.live
            level = min((member.level for member in live), default=len(self.steps))
            here = [member for member in live if member.level == level]
            if level == len(self.steps) or not bracket.full:
                continue
            if any(level not in member.values or member.number in running for member in here):
                continue
            all_here = [member for member in bracket.members if level in member.values]
            before = sum(member.level > level for member in all_here)  # decided by an earlier command
            room = max(0, self.keep(level, len(all_here)) - before)
            here.sort(key=lambda member: member.values[level], reverse=not self.minimize)
            for member in here[:room]:
                member.level += 1
            for member in here[room:]:
                member.over = True
            on, out = on + here[:room], out + here[room:]
        return on, out


def by_factor(factor: int) -> Keep:
    """The rule of the papers: ⌊n / η⌋ candidates train on, and at least one."""
    return lambda level, count: max(1, count // factor)
