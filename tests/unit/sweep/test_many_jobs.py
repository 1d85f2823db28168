"""What would grow with the square of the number of jobs: reads of the ledger, the Pareto front, the charts."""

import itertools
import json
from pathlib import Path

import pytest

from hydraft.sweep.results import config_text, outcome
from hydraft.sweep.results.ledger import Job, Ledger, State
from hydraft.sweep.results.outcome import Outcome
from hydraft.sweep.results.plot_style import some


def test_each_event_of_a_ledger_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: (parsed.append(text), loads(text))[1])
    book = Ledger(tmp_path)
    book.add([Job(str(number), f"job-{number}") for number in range(50)])
    for number in range(50):
        book.record(str(number), State.running)
        assert book.jobs()[str(number)].attempt == 1
        assert book.job(str(number)).state is State.running
    assert len(parsed) == 100
    assert Ledger(tmp_path).jobs() == book.jobs()


def test_a_ledger_that_is_cut_or_written_anew_is_read_again(tmp_path: Path) -> None:
    book = Ledger(tmp_path)
    book.add([Job("a", "a"), Job("b", "b")])
    with book.file.open("ab") as file:
        file.write(b'{"job": "a", "na')  # another process is writing this line
    assert book.job("a").state is State.pending
    book.record("b", State.running)
    assert book.job("b").state is State.running
    lines = book.file.read_bytes().splitlines(keepends=True)
    book.file.write_bytes(lines[0])
    assert list(book.jobs()) == ["a"]


def test_the_front_is_that_of_all_pairs() -> None:
    points = [[float(a * 7 % 11), float(b * 5 % 13)] for a, b in itertools.product(range(11), range(13))]
    points += [[0.5, float(12 - n)] for n in range(3)] + [points[0]]
    jobs = [
        Outcome(Job(str(n), str(n), state=State.done, objective=point), Path(str(n))) for n, point in enumerate(points)
    ]

    def dominated(mine: list[float]) -> bool:
        return any(other[0] <= mine[0] and other[1] >= mine[1] and other != mine for other in points)

    found = outcome.rank(jobs, [True, False])
    assert {int(one.job.key) for one in found if one.on_front} == {n for n, p in enumerate(points) if not dominated(p)}


def test_a_config_is_read_section_by_section_as_yaml_reads_it() -> None:
    text = "seed: 7\nlora:\n  r: 8\n  targets: [q, v]\ndata:\n  system: |\n    one\n    two: 3\nresume: null\n"
    assert config_text.settings(text) == config_text.flat(config_text.yaml.safe_load(text))
    assert config_text.settings("{seed: 7}\n") == {"seed": 7}


@pytest.mark.parametrize("best", [True, False])
def test_a_chart_of_many_jobs_draws_the_best_and_others_evenly(best: bool) -> None:
    drawn, note = some(range(10_000), 100, best)
    assert len(set(drawn)) == 100 and drawn == sorted(drawn)
    assert (drawn[:50] == list(range(50))) is best
    assert "Of 10,000 jobs, 100 are drawn" in note
    assert some(range(100), 100) == (list(range(100)), "")
