"""Which process a job is given to, and how many jobs share one."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydraft.plan.pack import PackMemory
from hydraft.sweep import pack_places
from hydraft.sweep.placement import PATIENCE, Waiting, choose, even, shares
from hydraft.sweep.pool_job import Task
from hydraft.sweep.slots import Demand
from hydraft.system.hardware import Gpu, Hardware

KINDS = st.sampled_from([None, "a", "b", "c"])


@given(st.dictionaries(KINDS, st.integers(1, 40), min_size=1), st.integers(1, 16))
def test_slots_are_shared_in_proportion(jobs: dict[str | None, int], slots: int) -> None:
    given_out = shares(jobs, slots)
    assert sum(given_out.values()) == min(slots, sum(jobs.values()))
    assert all(0 <= given_out[key] <= jobs[key] for key in jobs)
    assert sum(count > 0 for count in given_out.values()) == min(slots, len(jobs))
    if slots >= len(jobs):  # more jobs, no fewer slots
        assert all(given_out[one] >= given_out[two] - 1 for one in jobs for two in jobs if jobs[one] >= jobs[two])


@pytest.mark.parametrize(("jobs", "slots", "most", "places"), [(8, 2, 8, 4), (9, 2, 8, 5), (8, 2, 3, 3), (1, 2, 8, 1)])
def test_jobs_are_spread_evenly(jobs: int, slots: int, most: int, places: int) -> None:
    assert even(jobs, slots, most) == places


@dataclass
class Fake:
    """A process whose jobs are numbers."""

    pack: str | None
    places: int
    jobs: list[int] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.jobs)

    @property
    def room(self) -> int:
        return self.places - self.count if self.pack is not None else 0


@given(st.lists(KINDS, max_size=30), st.integers(1, 4), st.integers(2, 5), st.randoms(use_true_random=False))
def test_every_job_runs_once_and_only_with_jobs_of_its_kind(
    kinds: list[str | None], slots: int, places: int, random: object
) -> None:
    waiting = Waiting()
    for number, kind in enumerate(kinds):
        waiting.add(Task(number, [], None, kind))
    running: list[Fake] = []
    done: list[int] = []
    while len(done) < len(kinds):
        while (found := choose(waiting, running, slots - len(running), slots)) is not None:
            kind, one = found
            task = waiting.pop(kind)
            if one is None:
                assert len(running) < slots
                running.append(one := Fake(kind, places if kind else 1))
            assert one.pack == kinds[task.number] and one.count < one.places
            one.jobs.append(task.number)
        assert running, "jobs wait, and none runs"
        assert len(running) == slots or not len(waiting)
        one = random.choice(running)  # type: ignore[attr-defined]
        done.append(one.jobs.pop(random.randrange(one.count)))  # type: ignore[attr-defined]
        running = [one for one in running if one.jobs]
    assert sorted(done) == list(range(len(kinds)))


def test_a_job_that_is_overtaken_is_noticed() -> None:
    waiting = Waiting()
    waiting.add(Task(0, [], None, "a"))
    for number in range(1, PATIENCE + 1):
        waiting.add(Task(number, [], None, "b"))
        assert waiting.starved() == []
        waiting.pop("b")
    assert waiting.starved() == ["a"]
    waiting.pop("a")
    assert waiting.starved() == []


MEMORY = PackMemory(base=100, loading=90, states=10, batch=20, scoring=30)


SIZES = st.integers(1, 10**6)


@given(st.builds(PackMemory, SIZES, SIZES, SIZES, SIZES, SIZES, st.sampled_from([0.0, 0.05])), st.integers(1, 10**10))
def test_the_most_members_fit_and_one_more_does_not(memory: PackMemory, available: int) -> None:
    found = memory.members(available)
    assert found >= 1
    if memory.of(1) <= available:
        assert memory.of(found) <= available + 1 and memory.of(found + 1) + 1 >= available


def test_places_of_a_list_and_of_a_search() -> None:
    cpu = Hardware(cpus=2, memory=1000)
    jobs = [Demand(pack="one", shared=MEMORY)] * 8
    assert pack_places.available(2, cpu) == 450
    assert pack_places.places(jobs, 2, cpu, None).of("one") == 4
    assert pack_places.places(jobs * 10, 2, cpu, None).of("one") == 11  # 100 + 11 x (10 + 20) bytes
    assert pack_places.places(jobs, 2, cpu, 16) == pack_places.Places({"one": 11}, 1, fit=11)
    assert pack_places.places(jobs[:2], 2, cpu, None).of("one") == 1
    assert pack_places.places([Demand()], 2, cpu, None).by_key == {}
    search = pack_places.places(jobs[:1], 2, cpu, None, fixed=False)
    assert search.of("any") == pack_places.SEARCH
    two = Hardware(gpus=(Gpu("a card", 400, 8.0),) * 2, cpus=8, memory=0)
    assert [pack_places.available(slots, two) for slots in (1, 2, 4)] == [400, 400, 200]


def test_what_is_said_about_packs() -> None:
    cpu = Hardware(cpus=2, memory=1000)
    jobs = [Demand(pack="one", shared=MEMORY)] * 8

    def said(demands: list[Demand], asked: int | None) -> list[str]:
        found = pack_places.places(demands, 2, cpu, asked)
        return list(pack_places.lines(demands, found, 2, asked))

    assert said(jobs, None) == ["8 jobs in 2 packs of 4: a pack trains them together over one frozen base"]
    assert said(jobs, 2)[0].endswith(", and the others as places get free (2 in a pack)")
    assert said(jobs, 1) == [] == said(jobs[:2], None)
    assert said(jobs, 16)[1] == "hydra.launcher.pack=16: 11 fit into the memory"
    alone = [Demand(why_alone="lora.method=pissa changes the base")] * 2
    assert said(alone, 4) == ["hydra.launcher.pack=4: 2 jobs run alone: lora.method=pissa changes the base"]
    assert said(alone, None) == []
