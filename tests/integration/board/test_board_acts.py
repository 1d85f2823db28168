"""The board's form and actions in a browser: a run is composed, refused, mended, started, stopped and resumed, and a sweep outlives the board."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.browser import Browser, missing
from conftest import ROOT, run_script, wait_for
from hydraft.board.planner import Planner
from hydraft.sweep.results.ledger import Ledger, State
from hydraft.system import line_file

MORE = "quant.kind=none data.eval=null data.max_length=64 train.micro_batch_size=2 train.log_every=1"

PLANNED = (
    ["lora.r=16", "train.learning_rate=1e-4"],
    ["model=qwen", "model.size=3-14b", "quant=none", "cluster.gpu_memory=24GiB"],
    ["experiment=zh_qa", "zero=stage3", "cluster=1x4"],
    ["-m", "lora.r=2,4", "lora=default,dora"],
    ["lora.r=0"], ["lora.rank=3"], ["quant=nf5"], ["data.train=none.json"], ["objective=dpo"], ["-m", "lora.r=2,0"], ["lora.r=2,4"],
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if reason := missing():
        pytest.skip(reason)
    pytest.importorskip("selenium")
    found = Browser()
    yield found
    found.close()


def start_board(folder: Path) -> tuple["subprocess.Popen[str]", str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "hydraft", "board", "--port", "0"], cwd=folder, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def open_form(browser: Browser, address: str) -> None:
    browser.driver.get("about:blank")
    browser.driver.get(f"{address}#view=new")
    wait_for(lambda: browser.texts("#fits") != [], 60, "the plan of the default run is shown")


def enter(browser: Browser, name: str, text: str) -> None:
    """Type into the field of this id."""
    from selenium.webdriver.common.by import By

    field = browser.driver.find_element(By.ID, name)
    field.clear()
    field.send_keys(text)


def test_the_form_says_what_mode_plan_says() -> None:
    planner = Planner()
    try:
        for arguments in PLANNED:
            sweep, rest = arguments[:1] == ["-m"], [one for one in arguments if one != "-m"]
            expected = run_script("train.py", *(["-m"] if sweep else []), "mode=plan", *rest)
            found = planner.plan(arguments)
            assert (found["code"], found["text"]) == (expected.returncode, expected.stdout), arguments
            assert found["error"] == expected.stderr.strip().removeprefix("train.py: "), arguments
            assert [plan["headline"] for plan in found["plans"]] == [line for line in expected.stdout.splitlines() if " · ZeRO-" in line]  # fmt: skip
            if found["plans"]:
                assert (found["plans"][0]["verdict"] or "") in expected.stdout
        assert planner.plan(["-m", "lora.r=2,4", "lora=default,dora"])["jobs"] == 4
        search = planner.plan(["-m", "sweep=search", "lora.r=2,4"])
        assert search["searches"] and search["code"] == 0 and len(search["plans"]) == 1
    finally:
        planner.close()


def test_a_run_from_the_form_is_stopped_and_resumed(browser: Browser, tmp_path: Path) -> None:
    process, address = start_board(tmp_path)
    try:
        browser.set_display(1400)
        browser.driver.get(address)
        browser.run("localStorage.setItem('language', 'en')")
        open_form(browser, address)
        folder = _start(browser, tmp_path)
        _stop(browser, folder)
        _resume(browser, folder)
        assert browser.console_messages() == []
        sweep = _sweep(browser, address, tmp_path)
        process.kill()  # not even time to say goodbye
        wait_for(lambda: [job.state for job in Ledger(sweep).jobs().values()] == [State.done] * 2, 120, "the sweep goes on without its board")  # fmt: skip
        wait_for(lambda: not list(sweep.glob(".holder.*")), 30, "it ends")
    finally:
        process.kill()
        process.wait()
        _end(tmp_path)


def _start(browser: Browser, folder: Path) -> Path:
    enter(browser, "setting-lora.r", "0")
    wait_for(lambda: browser.texts("#refusal") != [], 20, "a refusal is shown as one types")
    expected = "lora.r=0: the rank of a LoRA update is at least 1; for full fine-tuning use lora=none"
    assert browser.texts("#refusal") == [expected]
    assert browser.run("return document.getElementById('setting-lora.r').getAttribute('aria-invalid')") == "true"
    assert browser.run("return document.getElementById('start').disabled")
    assert list(folder.iterdir()) == []  # planning writes nothing
    enter(browser, "setting-lora.r", "2")
    enter(browser, "setting-train.max_steps", "4000")
    enter(browser, "more", MORE)
    command = f"python -m hydraft train lora.r=2 train.max_steps=4000 {MORE}"
    wait_for(lambda: browser.texts(".plan .command pre") == [command] and browser.texts("#fits") == ["fits"], 20, "the refusal is gone")  # fmt: skip
    browser.click("#start")
    wait_for(lambda: browser.texts("h2.run-name .state") == ["running"], 90, "the run is opened, and trains")
    found = next((folder / "outputs").glob("*/*"))
    wait_for(lambda: len(line_file.read(found / "metrics.jsonl").values) > 2, 60, "it logs")
    return found


def _stop(browser: Browser, folder: Path) -> None:
    browser.click("[data-action=stop]")
    wait_for(lambda: browser.texts("h2.run-name .state") == ["stopped"], 90, "it has stopped in good order")
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["signal"]) == ("preempted", "SIGTERM")
    assert (folder / f"checkpoints/step-{result['step']:06d}").is_dir()


def _resume(browser: Browser, folder: Path) -> None:
    step = json.loads((folder / "result.json").read_text())["step"]
    wait_for(lambda: browser.texts("[data-action=resume]") != [], 20, "it can be resumed")
    browser.click("[data-action=resume]")
    wait_for(lambda: browser.texts("[data-action=resume-start]") != [], 20, "what may be changed is asked")
    others = ".resuming > input"
    browser.run("const e = document.querySelector(arguments[0]); e.value = arguments[1]", others, "lora.r=4")
    browser.click("[data-action=resume-start]")
    wait_for(lambda: any("cannot be changed on resume" in text for text in browser.texts(".acts .refusal")), 60, "what may not be changed is refused")  # fmt: skip
    browser.run("document.querySelector(arguments[0]).value = ''", others)
    enter(browser, "resume-train.max_steps", str(step + 3))
    browser.click("[data-action=resume-start]")
    wait_for(lambda: browser.texts(".acts .refusal") == [], 20, "the refusal is gone")
    wait_for(lambda: browser.texts("h2.run-name .state") == ["completed"], 120, "it is resumed to its end")
    steps = [line["step"] for line in line_file.read(folder / "metrics.jsonl").values if "loss" in line]
    assert steps == list(range(1, step + 4))  # each once


def _sweep(browser: Browser, address: str, folder: Path) -> Path:
    """A sweep that is started, stopped and resumed, and still runs."""
    open_form(browser, address)
    enter(browser, "setting-lora.r", "2,4")
    enter(browser, "setting-train.max_steps", "150")
    wait_for(lambda: browser.texts("#jobs-count") == ["A sweep of 2 jobs"], 20, "the number of jobs is shown")
    wait_for(lambda: "max_steps=150" in browser.texts(".plan .command pre")[0], 20, "the last change is planned")
    browser.click("#start")
    wait_for(lambda: browser.run("return document.getElementById('main').dataset.view") == "sweep", 90, "the sweep is opened")  # fmt: skip
    sweep = next((folder / "multirun").glob("*/*"))
    wait_for(lambda: any(file.stat().st_size for file in sweep.glob("*/metrics.jsonl")), 90, "its jobs train")
    browser.click("[data-action=stop]")
    wait_for(lambda: browser.texts("[data-action=resume]") != [], 90, "it has stopped and can be resumed")
    assert State.interrupted in [job.state for job in Ledger(sweep).jobs().values()]
    browser.click("[data-action=resume]")
    wait_for(lambda: browser.texts("[data-action=stop]") != [], 90, "it runs again")
    return sweep


def _end(folder: Path) -> None:
    """End what the board has started, if the test failed meanwhile."""
    for process in psutil.process_iter(["cwd", "cmdline"]):
        info: dict[str, Any] = process.info
        if info["cwd"] == str(folder) and any("train.py" in word for word in info["cmdline"] or ()):
            process.send_signal(signal.SIGKILL)
