"""report.html, in a browser: it opens without a network, draws every chart, and shows a job's config on a click."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import folders
from bench.browser import Browser, missing
from conftest import wait_for
from hydraft.evaluation import answers
from hydraft.evaluation.answers import AnswerLine
from hydraft.sweep.results import html, outcome, reading
from hydraft.sweep.results.ledger import State
from unit.sweep.test_points import sweep as several_seeds

MALICIOUS = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&lt;b&gt;{instruction}%{x}"
"""Text that a config may contain, and that must stay text."""


def grid(**axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination; ``lora__r`` stands for lora.r."""
    names = [name.replace("__", ".") for name in axes]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*axes.values())]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests, since it takes seconds to start."""
    if reason := missing():
        pytest.skip(reason)
    pytest.importorskip("selenium")
    found = Browser()
    yield found
    found.close()


def written(folder: Path) -> Path:
    """Write the report of the sweep in ``folder`` and return the page."""
    return html.write(outcome.read(folder))


def charts_and_marks(browser: Browser) -> list[tuple[str, int]]:
    """Each chart's title, and the number of its marks on the page: lines, points, bars or cells."""
    script = """return [...document.querySelectorAll(".chart")].map((chart) => [chart.querySelector("h3").textContent,
        chart.querySelectorAll(".js-line, .point, .hm image, .heatmaplayer image").length])"""
    return [(str(title), int(count)) for title, count in browser.run(script)]


def test_the_page_draws_every_chart_without_a_network(tmp_path: Path, browser: Browser) -> None:
    jobs = grid(zero=["stage2", "stage3"], lora__r=[4, 8, 16], train__learning_rate=[1e-4, 1e-3, 1e-2])
    page = written(folders.make(tmp_path / "plain", jobs, [State.failed], {0: "CUDA out of memory"}))
    browser.open(page)
    assert browser.console_messages() == []
    assert [url for url in browser.requests() if not url.startswith(("file:", "data:"))] == []
    charts = charts_and_marks(browser)
    assert [title for title, _ in charts] == [
        "Held-out loss against train.learning_rate",  # the one that explains most of the objective
        "Held-out loss against lora.r",
        "Held-out loss against zero",
        "Which settings lead to the best jobs",
        "Held-out loss by lora.r and train.learning_rate",
        "Training loss of each job",
        "Peak memory of a rank by ZeRO stage",
        "Throughput by ZeRO stage",
    ]
    assert all(count > 0 for _, count in charts), charts
    assert dict(charts)["Which settings lead to the best jobs"] == 17  # one line per completed job
    assert browser.run("return document.querySelector('.chart .plot').layout.xaxis.type") == "log"
    assert browser.texts("#best pre") == ["python train.py zero=stage2 lora.r=16 train.learning_rate=0.001"]
    assert browser.texts(".failure pre") == ["CUDA out of memory"]


def test_a_click_on_a_job_shows_its_config(tmp_path: Path, browser: Browser) -> None:
    page = written(folders.make(tmp_path / "clicks", grid(lora__r=[4, 8], train__learning_rate=[1e-3, 2e-3])))
    browser.open(page)
    browser.click("#jobs tbody tr:nth-child(2)")
    (shown,) = browser.texts("dialog[open] .config")
    (name,) = browser.texts("dialog[open] h3")
    job = next(one for one in outcome.read(tmp_path / "clicks").outcomes if one.job.name == name)
    lines = shown.splitlines()
    assert f"lora.r: {job.values['lora.r']}" in lines
    assert "model.name: tiny" in lines
    assert len(lines) == len(job.config)
    assert browser.texts("dialog[open] .command pre") == [job.command]
    browser.click("dialog[open] .copy")
    wait_for(lambda: browser.texts("dialog[open] .copy") == ["Copied"], 10, "the command is copied")
    browser.click("dialog[open] .top button")
    browser.click("#jobs th:nth-child(2) button")  # sorted by lora.r, ascending
    assert browser.texts("#jobs tbody td:nth-child(2)") == ["4", "4", "8", "8"]
    browser.click(".chart select")
    assert browser.console_messages() == []


def test_configs_and_errors_are_shown_as_text(tmp_path: Path, browser: Browser) -> None:
    jobs = grid(zero=["stage0", "stage2"], data__template=["chat", "中文：{instruction}", MALICIOUS])
    about = {"name": MALICIOUS, "command": MALICIOUS, "objective": MALICIOUS}
    folder = folders.make(tmp_path / "evil", jobs, [State.failed], {0: MALICIOUS}, about)
    best = outcome.read(folder).best
    assert best is not None
    for step, text in ((0, ""), (40, MALICIOUS)):
        scores = {"exact_match": float(bool(text))}
        answers.append(best.folder, [AnswerLine(step, 0, "d", None, MALICIOUS, text, MALICIOUS, scores)])
    page = written(folder)
    browser.open(page)
    assert browser.texts("#answers td") == [MALICIOUS, MALICIOUS, "✗ ", f"✓ {MALICIOUS}"]
    places = [one.values["data.template"] for one in outcome.read(folder).outcomes]
    browser.click(f"#jobs tbody tr:nth-child({places.index(MALICIOUS) + 1})")
    assert browser.console_messages() == []  # a missing image would print a message
    assert browser.run("return document.querySelectorAll('img, main script, dialog script').length") == 0
    assert browser.run("return document.title") == MALICIOUS == browser.texts("h1")[0]
    assert browser.texts(".failure pre") == [MALICIOUS]
    assert any(f"data.template: {MALICIOUS}" in text.splitlines() for text in browser.texts("dialog .config"))
    assert "</script><script>docu…" in browser.texts(".xtick text")
    assert "中文：{instruction}" in browser.texts(".xtick text")


def test_a_sweep_with_several_seeds_shows_what_can_be_told_apart(tmp_path: Path, browser: Browser) -> None:
    read = reading.read(several_seeds(tmp_path / "seeds"))
    browser.open(html.write(read))
    assert browser.console_messages() == []
    first, *more = browser.texts("#findings p")
    assert first.startswith("These three cannot be told apart (p = ") and [first, *more] == read.findings
    charts = charts_and_marks(browser)
    best = read.outcomes[0].job.name
    assert [title for title, _ in charts][:2] == [f"Difference from the best, {best}", "Held-out loss against lora.r"]
    assert dict(charts)["Held-out loss against lora.r"] == 4 + 1  # a point for each rank, and the line
    assert browser.run("return document.querySelectorAll('.errorbar .yerror').length") == 4
    assert browser.run("return document.querySelectorAll('.errorbar .xerror').length") == 3
    assert len(browser.texts("#jobs tbody tr")) == 4
    browser.click("#jobs tbody tr:nth-child(4)")
    assert "seed: 42, 43, 44" in browser.texts("dialog[open] .config")[0].splitlines()
    assert browser.console_messages() == []


def test_200_jobs_fit_the_page_light_and_dark(tmp_path: Path, browser: Browser) -> None:
    jobs = grid(
        zero=["stage0", "stage2", "stage3"], lora__r=[4, 8, 16, 32, 64], train__learning_rate=[i * 1e-4 for i in range(1, 15)]
    )[:200]  # fmt: skip
    states = [State.done] * 150 + [State.failed] * 20 + [State.running] * 2 + [State.pending] * 28
    page = written(folders.make(tmp_path / "big", jobs, states, steps=12))
    assert page.stat().st_size < 4_000_000
    browser.open(page)
    for dark, width in itertools.product((False, True), (1280, 400)):  # as if the system's color scheme changes
        browser.set_display(width, dark)
        assert browser.run("return document.documentElement.scrollWidth") <= width
        paper, ink = browser.run(
            "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color].map((c) => +c.match(/\\d+/)[0])"
        )
        assert (paper < 60 and ink > 200) if dark else (paper > 200 and ink < 60)
        label = browser.run("return getComputedStyle(document.querySelector('.xtick text')).fill")
        assert label == browser.run("return getComputedStyle(document.body).color")
    assert browser.console_messages() == []


@pytest.mark.parametrize(
    ("jobs", "states", "about", "titles"),
    [
        (grid(lora__r=[4, 8]), [State.pending] * 2, {}, []),
        (grid(lora__r=[4, 8]), [State.failed] * 2, {}, ["Training loss of each job"]),
        (grid(lora__r=[8]), [], {}, ["Training loss of each job", "Peak memory of a rank by ZeRO stage"]),
        (grid(train__learning_rate=[1e-4, 1e-3, 1e-2]), [], {}, ["Held-out loss against train.learning_rate"]),
        (
            grid(lora__r=[4, 8, 16]), [], {"objective": ["held-out loss", "adapter size"], "direction": ["minimize"] * 2},
            ["Adapter size against held-out loss", "Held-out loss against lora.r"],
        ),
    ],
    ids=["nothing started", "all failed", "one job", "one axis", "two objectives"],
)  # fmt: skip
def test_any_sweep_has_a_sensible_page(
    jobs: list[dict[str, Any]],
    states: list[State],
    about: dict[str, Any],
    titles: list[str],
    tmp_path: Path,
    browser: Browser,
) -> None:
    def goal(values: dict[str, Any]) -> Any:
        return [folders.loss_of(values), float(values["lora.r"])] if about else folders.loss_of(values)

    browser.open(written(folders.make(tmp_path / "some", jobs, states, about=about, goal=goal)))
    assert browser.console_messages() == []
    charts = charts_and_marks(browser)
    assert [title for title, _ in charts][: len(titles)] == titles
    assert bool(charts) == bool(titles)
    assert all(count > 0 for _, count in charts), charts
    assert len(browser.texts("#jobs tbody tr")) == len(jobs)


def test_charts_are_valid_plotly_figures(tmp_path: Path) -> None:
    """plotly.js ignores unknown keys; plotly.py raises an error."""
    from plotly.graph_objects import Figure

    jobs = grid(zero=["stage2", "stage3"], lora__r=[4, 8, 16], train__learning_rate=[i * 1e-4 for i in range(1, 12)])
    folder = folders.make(tmp_path / "checked", jobs, steps=10)

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return "#000" if isinstance(value, str) and value.startswith("var:") else value

    for part in html.content(outcome.read(folder))["sections"]:
        for chart in part["charts"]:
            layout = {key: value for key, value in chart["layout"].items() if key not in ("xaxis", "yaxis")}
            for axis in ("xaxis", "yaxis"):
                received = dict(chart["layout"].get(axis, {}))
                layout[axis] = {**received, "title": {"text": received.get("title", "")}}
            figure = Figure(data=plain(chart["traces"]), layout=plain(layout))
            assert len(figure.data) == len(chart["traces"]) > 0
