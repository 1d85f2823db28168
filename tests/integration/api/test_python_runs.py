"""Training, interrupting, resuming, failing and loading from Python, each with a real run."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import hydraft
from conftest import run_script, wait_for

if TYPE_CHECKING:
    from warm_python import WarmPython

SHORT = ("train.log_every=1", "data.eval_limit=4", "train.save_minutes=null")
REAL = sys.executable
QUESTION = "请为这段文字写一句话摘要：\n今天我和妈妈去图书馆借书。"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, python: "WarmPython") -> Path:
    """The folder of all runs. Commands start a Python that has the libraries in memory."""
    place = tmp_path_factory.mktemp("from python")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(sys, "executable", str(python.path))
        yield place


@pytest.fixture(scope="module")
def trained(folder: Path) -> hydraft.Run:
    """A run of four steps, whose config was changed in Python."""
    config = hydraft.compose(*SHORT)
    config.train.max_steps, config.data.name = 4, "it's 中文, ${x}"
    return hydraft.train(config)


def test_a_run_is_what_its_config_says(trained: hydraft.Run, folder: Path) -> None:
    assert trained.folder.is_relative_to(folder / "outputs") and trained == hydraft.Run() == hydraft.runs()[-1]
    assert (trained.status, trained.config.train.max_steps, trained.config.data.name) == (
        "completed",
        4,
        "it's 中文, ${x}",
    )
    assert list(trained.metrics.index) == [0, 1, 2, 3, 4] and trained.metrics["loss"].notna().sum() == 4
    assert trained.objective == trained.metrics["eval_loss"][4] == trained.result["after"]["loss"]
    answers = trained.answers
    assert set(answers["step"]) == {0, 4} and len(answers) == 8
    assert (
        trained.adapter is not None
        and (trained.adapter / "adapter_model.safetensors").is_file()
        and trained.model is None
    )
    assert "data:image/png;base64" in trained._repr_html_()
    command = json.loads((trained.folder / "environment.json").read_text())["command"]
    assert "train.max_steps=4" in command and command[0].endswith("train.py")


def test_a_loaded_model_answers_as_infer_py_does(trained: hydraft.Run) -> None:
    model, tokenizer = hydraft.load(trained, "max_new_tokens=12")
    asked = [{"role": "user", "content": QUESTION}]
    inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        output = model.generate(**inputs)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    printed = run_script("infer.py", f"run={trained.folder}", f"prompt={QUESTION}", "max_new_tokens=12")
    assert printed.returncode == 0 and printed.stdout.strip() == answer.strip() != ""
    assert not model.training and type(model).__name__ == "PeftModelForCausalLM"
    base = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert type(base).__name__ == "Linear4bit"  # as it was trained
    with pytest.raises(hydraft.ConfigError, match=r"for infer\.py"):
        hydraft.load(trained, "prompt=a")
    with pytest.raises(hydraft.ConfigError, match="no such folder"):
        hydraft.load("nowhere")


def test_an_interrupt_saves_and_the_run_can_go_on(folder: Path) -> None:
    config = hydraft.compose(*SHORT, "train.max_steps=2000", "data.eval=null")

    def interrupt() -> None:
        wait_for(lambda: _lines(folder / "stopped") >= 3, 60, "steps")
        os.kill(os.getpid(), signal.SIGINT)  # as the stop button of a notebook does

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(hydraft.RunStopped, match=r"to resume: hydraft\.Run") as caught:
        hydraft.train(config, "stopped", progress=False)
    run = hydraft.Run("stopped")
    assert (run.status, caught.value.step, caught.value.signal) == ("preempted", run.result["step"], signal.SIGINT)
    assert isinstance(caught.value, KeyboardInterrupt) and caught.value.step is not None
    last = caught.value.step + 2
    assert run.resume(f"train.max_steps={last}").status == "completed" and run.config.train.max_steps == last
    assert list(run.metrics.index) == list(range(1, last + 1))
    with pytest.raises(hydraft.ConfigError, match=r"seed=7: .* cannot be changed on resume"):
        run.resume("seed=7", progress=False)


def _lines(folder: Path) -> int:
    try:
        return (folder / "metrics.jsonl").read_text().count("\n")
    except OSError:
        return 0


def test_failures_are_exceptions_with_the_runs_own_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = hydraft.compose(*SHORT, "train.learning_rate=50", "train.max_steps=30", "data.eval=null")
    with pytest.raises(hydraft.RunFailed) as caught:
        hydraft.train(config, "diverged")
    run = hydraft.Run("diverged")
    assert run.status == "diverged" and str(run.error).removeprefix("Diverged: ") in str(caught.value)
    assert str(run.error)[10:] not in capsys.readouterr().out  # said once, by the exception
    with pytest.raises(hydraft.ConfigError, match="kernels=liger needs a GPU"):
        hydraft.train(hydraft.compose("kernels=liger"), "refused", progress=False)
    with pytest.raises(hydraft.ConfigError, match=r"a run is in it already.*seed=42, not 1"):
        config.seed = 1
        hydraft.train(config, "diverged", progress=False)
    with pytest.raises(hydraft.ConfigError, match="mode=plan"):
        hydraft.train(hydraft.compose("mode=plan"))
    assert not Path("refused").exists()


def test_a_caller_that_is_killed_leaves_a_run_that_saves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing

    monkeypatch.setattr(sys, "executable", REAL)  # the kernel signals the process that the caller started
    caller = multiprocessing.get_context("fork").Process(target=_train_until_killed)
    caller.start()
    wait_for(lambda: _lines(folder / "orphan") >= 3, 60, "steps")
    caller.kill()
    caller.join()
    run = hydraft.Run("orphan")
    start = time.monotonic()
    wait_for(lambda: run.status != "running", 30, "the end of the run")
    assert run.status == "preempted" and run.result["signal"] == "SIGTERM" and time.monotonic() - start < 30


def _train_until_killed() -> None:
    hydraft.train(hydraft.compose(*SHORT, "train.max_steps=2000", "data.eval=null"), "orphan", progress=False)
