"""The board in a browser: real runs, one of them while it trains, in both languages and colours, on a wide and a narrow window."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.browser import Browser, missing
from conftest import ROOT, SCALE, run_script, start_script, wait_for
from hydraft.system import line_file

TRAIN = [
    "quant=none", "data.train=data/zh_tasks.train.json", "data.eval=data/zh_tasks.test.json", "data.eval_limit=4", "data.eval_max_new_tokens=4",
    "train.log_every=1", "data.max_length=128",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if reason := missing():
        pytest.skip(reason)
    pytest.importorskip("selenium")
    found = Browser()
    yield found
    found.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two jobs."""
    folder = tmp_path_factory.mktemp("board")
    (folder / "outputs").mkdir()
    done = run_script(
        "train.py", "-m", "lora.r=2,4", *TRAIN, "train.max_steps=3", f"hydra.sweep.dir={folder}/multirun/ranks"
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """Of the board, started as a user does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hydraft", "board", "--port", "0"], cwd=folder, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) in (0, -2, 130)


def open_view(browser: Browser, address: str, view: str = "runs") -> None:
    browser.driver.get("about:blank")
    browser.driver.get(f"{address}#view={view}")
    wait_for(lambda: browser.run("return document.documentElement.dataset.ready") == "true", 30, "the page is there")


def points(browser: Browser) -> int:
    """Points of the training loss that the page draws."""
    script = "return document.querySelector('[data-metric=loss] .plot')?.data?.[0]?.x.length ?? 0"
    return int(browser.run(script))


def written_by(folder: Path) -> set[Path]:
    return {file for file in folder.rglob("*") if ".lock" not in file.name}


def test_a_run_is_seen_while_it_trains(folder: Path, address: str, browser: Browser) -> None:
    browser.set_display()
    open_view(browser, address)
    browser.run("localStorage.setItem('language', 'en')")
    open_view(browser, address)
    assert browser.texts("#runs tr.sweep a") == ["ranks"] or browser.texts("#runs tr.sweep a") == [
        f"{folder}/multirun/ranks"
    ]
    assert sorted(browser.texts("#runs tr.job .name a")) == ["r=2", "r=4"]
    heads = browser.texts("#runs thead th")
    assert "r" in heads and "lr" not in heads  # what differs, and nothing else
    run = folder / "outputs/live"
    process = start_script("train.py", *TRAIN, "train.max_steps=40", f"hydra.run.dir={run}", streams=folder)
    selector = "#runs tr[data-run='outputs/live']"
    wait_for(lambda: bool(browser.texts(selector)), 60, "the run appears without a reload")
    wait_for(lambda: "running" in browser.texts(f"{selector} .state"), 120, "it is shown as running")
    browser.click(f"{selector} .name a")
    wait_for(lambda: points(browser) > 1, 60, "its curve is drawn")
    seen = points(browser)
    wait_for(lambda: points(browser) > seen, 60, "the curve moves")
    process.join(300 * SCALE)
    assert process.exitcode == 0
    wait_for(lambda: browser.texts("h2.run-name .state") == ["completed"], 30, "its end is seen")
    wait_for(lambda: points(browser) == 40, 30, "the whole curve is there")
    losses = [line["loss"] for line in line_file.read(run / "metrics.jsonl").values if "loss" in line]
    assert browser.run("return [...document.querySelector('[data-metric=loss] .plot').data[0].y]") == losses
    result = json.loads((run / "result.json").read_text())
    wait_for(lambda: "held-out loss" in _scores(browser), 30, "the scores are there")
    assert float(_scores(browser)["held-out loss"]) == pytest.approx(result["after"]["loss"], rel=1e-3)
    wait_for(
        lambda: "hydraft.launch.run INFO completed" in "".join(browser.texts("pre.log")) or _choose_log(browser),
        30,
        "the log is shown",
    )
    assert browser.console_messages() == []


def _scores(browser: Browser) -> dict[str, str]:
    """The scores after training that the page of a run shows."""
    script = "return [...document.querySelectorAll('#scores tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
    return {row[0]: row[3] for row in browser.run(script)}


def _choose_log(browser: Browser) -> bool:
    browser.run(
        "const s = document.querySelector('select[aria-label=log]'); s.value = 'train.log'; s.dispatchEvent(new Event('change'))"
    )
    return False


def test_every_view_in_both_languages_and_colours(folder: Path, address: str, browser: Browser, tmp_path: Path) -> None:
    before = written_by(folder)
    open_view(browser, address)
    browser.requests()
    chosen = "&run=multirun/ranks/r%3D2&run=multirun/ranks/r%3D4"
    views = {"runs": "#runs tr.chosen-row", "curves": ".js-line", "configs": "#configs tr.differs", "answers": "#answers td.text", "memory": ".stack i", "logs": "pre.log"}  # fmt: skip
    for language, dark in itertools.product(("en", "zh"), (False, True)):
        browser.run("localStorage.setItem('language', arguments[0])", language)
        browser.set_display(dark=dark)
        open_view(browser, address, "runs" + chosen)
        for view, mark in views.items():
            browser.run("location.hash = arguments[0]", f"view={view}{chosen}")
            wait_for(lambda mark=mark: bool(browser.texts(mark)), 30, f"{view}: {mark}")  # type: ignore[misc]
            for width in (390, 1280):
                browser.set_display(width, dark)
                assert browser.run("return document.documentElement.scrollWidth") <= width, view
                browser.driver.save_screenshot(
                    str(tmp_path / f"{view}-{language}-{'dark' if dark else 'light'}-{width}.png")
                )
        paper, ink = browser.run(
            "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color].map((c) => +c.match(/\\d+/)[0])"
        )
        assert (paper < 60 and ink > 200) if dark else (paper > 200 and ink < 60)
        assert browser.texts("nav button")[0] == {"en": "Runs", "zh": "运行"}[language]
    open_view(browser, address, "configs" + chosen)
    wait_for(lambda: bool(browser.texts("#configs tbody th")), 30, "settings are compared")
    assert browser.texts("#configs tbody th") == ["lora.r"]
    open_view(browser, address, "sweep&id=multirun/ranks")
    wait_for(lambda: len(browser.texts(".chart .plot .main-svg")) > 0, 30, "the charts of the report")
    asked = [url for url in browser.requests() if url.startswith("http")]
    assert all(url.startswith(address) for url in asked) and asked
    assert browser.console_messages() == []
    assert written_by(folder) == before  # the board only reads


def test_an_empty_board_says_how_to_start(browser: Browser, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "hydraft", "board", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            browser.set_display()
            open_view(browser, process.stdout.readline().strip())
            assert browser.texts("#empty pre") == ["python -m hydraft train"]
        finally:
            process.terminate()
