"""The figures, table and archive that bench-gpu creates from the folders of its steps."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.gpu import collect, records, wheels
from bench.gpu.flops import work
from bench.gpu.steps import Outcome
from conftest import SCALE, run_script
from hydraft.system.source_tree import ROOT

LLAMA = {
    "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
PARAMETERS = 8_030_261_248


def test_mfu_by_hand() -> None:
    """Llama-3.1-8B, QLoRA, documents of 2,048 tokens, 10,000 tokens/s on a GPU of 989 TFLOP/s."""
    multiplied = PARAMETERS - 128256 * 4096
    assert multiplied == 7_504_924_672
    frozen = work(LLAMA, PARAMETERS, 0, 2048, recomputes=False)
    assert frozen.per_token == 4 * 7_504_924_672 + 6 * 32 * 4096 * 2048 == 31_630_311_424
    assert frozen.utilisation(10_000, 989e12) == pytest.approx(0.31982, abs=1e-5)
    second = work(LLAMA, PARAMETERS, 0, 2048, recomputes=True)
    assert second.per_token == 6 * 7_504_924_672 + 8 * 32 * 4096 * 2048
    adapter = work(LLAMA, PARAMETERS, 20_971_520, 2048, recomputes=False)
    assert adapter.per_token - frozen.per_token == 6 * 20_971_520


def test_a_tied_embedding_counts_as_the_head() -> None:
    tied = work(LLAMA | {"tie_word_embeddings": True}, PARAMETERS, 0, 2048, recomputes=False)
    assert tied.frozen == PARAMETERS


def finished_run(scratch: Path, name: str, model: Path, *, on_card: bool = True, result: bool = True) -> None:
    """Write the files of a run as train.py does."""
    folder = scratch / name
    folder.mkdir(parents=True)
    config = {
        "model": {"path": str(model)},
        "data": {"eval": None, "max_length": 2048},
        "train": {"gradient_checkpointing": False},
    }
    part = {"weights": 5 << 30, "activations": 7 << 30, "overhead": 1 << 30}
    memory = {
        "loading": {"weights": 6 << 30, "overhead": 1 << 30},
        "training": part,
        "host_training": {"weights": 3 << 30},
    }
    cost = {"parameters": PARAMETERS, "trained": 0, "memory": memory}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "plan.json").write_text(json.dumps({"gpu_memory": 80 << 30 if on_card else None, "cost": cost}))
    lines: list[dict[str, Any]] = [
        {"step": step, "loss": 9.0 - step, "learning_rate": 1e-4, "tokens_per_second": speed}
        for step, speed in enumerate((100.0, 900.0, 10_000.0, 10_100.0, 9_900.0))
    ]
    text = "\n".join(map(json.dumps, lines))
    (folder / "metrics.jsonl").write_text(text + '\n{"step": 6, "lo')  # the last line was truncated
    if result:
        (folder / "result.json").write_text(json.dumps({"status": "completed", "peak_memory_bytes": 10 << 30}))


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    model = tmp_path / "models/llama3"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(LLAMA))
    finished_run(tmp_path, "llama-qlora", model)
    finished_run(tmp_path, "tiny-nf4-stage2", ROOT / "src/hydraft/models/tiny")
    finished_run(tmp_path, "llama-lora", model, result=False)
    trainer = {
        "tokens_per_second": 5000.0, "peak_memory_bytes": 20 << 30, "losses": [9.0, 8.0], "trained": 0, "parameters": PARAMETERS,
        "model": str(model), "length": 2048, "recomputes": False,
    }  # fmt: skip
    (tmp_path / "trainer-qlora.json").write_text(json.dumps(trainer))
    served = {
        "run": "llama-qlora",
        "passes": [{"at_once": 16, "tokens_per_second": 812.4, "first_p50_ms": 90, "first_max_ms": 120}],
    }
    (tmp_path / "serve.json").write_text(json.dumps(served))
    (tmp_path / "records.json").write_text(json.dumps([{"instruction": "x", "output": "y"}]))
    probes = [
        {"probe": "matmul", "answer": None, "error": "busy", "seconds": 1},
        {"probe": "matmul", "answer": {"FLOP/s": 989e12}, "error": None, "seconds": 1},
        {"probe": "context", "answer": None, "error": "RuntimeError: a | b", "seconds": 1},
    ]
    (tmp_path / "probes.jsonl").write_text("\n".join(map(json.dumps, probes)))
    return tmp_path


def test_figures_from_the_folders_of_runs(scratch: Path) -> None:
    outcomes = [
        Outcome("llama-qlora", "llama", "ok", 40, 90),
        Outcome("x", "llama", "failed (code 2)", 1, 90, "why | not"),
    ]
    found = collect.gather(scratch, outcomes)
    assert found["matmul_flops"] == 989e12
    run = found["runs"]["llama-qlora"]
    assert run["tokens_per_second"] == 10_000
    assert run["mfu"] == pytest.approx(0.31982, abs=1e-5)
    assert (run["planned_bytes"], run["peak_memory_bytes"]) == (12 << 30, 10 << 30)
    assert run["plan_off"] == pytest.approx(0.2)
    assert found["runs"]["llama-lora"]["status"] == "did not finish"
    assert found["runs"]["llama-lora"]["peak_memory_bytes"] is None
    assert found["runs"]["tiny-nf4-stage2"]["tokens_per_second"] is None, "it ran concurrently with others"
    assert found["runs"]["trainer-qlora"]["mfu"] == pytest.approx(0.31982 / 2, abs=1e-5)
    json.dumps(found)


def test_the_table(scratch: Path) -> None:
    outcomes = [
        Outcome("llama-qlora", "llama", "ok", 40, 90),
        Outcome("x", "llama", "failed (code 2)", 1, 90, "why | not"),
    ]
    lines = collect.table(collect.gather(scratch, outcomes)).splitlines()
    assert "| llama-qlora | completed | 10,000 | 32.0% | 10.00 | 12.00 | +20% | 9.000 → 5.000 |" in lines
    assert "| trainer-qlora | finished | 5,000 | 16.0% | 20.00 | – | – | 9.000 → 8.000 |" in lines
    assert "| 16 at once | 812 | 90 ms | 120 ms |" in lines
    assert "| x | failed (code 2): why / not | 1 | 90 |" in lines
    assert "| context | RuntimeError: a / b |" in lines
    assert lines[-1] == "1 of 2 steps ok"


def test_a_table_without_measurements(tmp_path: Path) -> None:
    assert collect.table(collect.gather(tmp_path, [])).endswith("0 of 0 steps ok")


def test_the_archive_has_logs_and_no_weights(scratch: Path, tmp_path: Path) -> None:
    (scratch / "llama-qlora/adapter").mkdir()
    (scratch / "llama-qlora/adapter/adapter_config.json").write_text("{}")
    (scratch / "llama-qlora/rank-0.log").write_text("output of a rank")
    (scratch / "models/llama3/model.safetensors").write_bytes(b"x")
    target = tmp_path / "out.tgz"
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/loss-cpu.json").write_text("{}")
    collect.pack(scratch, target, tmp_path / "figures")
    with tarfile.open(target) as archive:
        names = set(archive.getnames())
    assert {"llama-qlora/rank-0.log", "llama-qlora/metrics.jsonl", "llama-lora/plan.json", "probes.jsonl"} <= names
    assert "bench-results/loss-cpu.json" in names, "results would be lost otherwise when the machine is released"
    assert not [name for name in names if "adapter" in name or "models" in name or name == "records.json"]


def test_records_have_the_requested_length(tmp_path: Path) -> None:
    made = json.loads(records.write(tmp_path / "a.json", 20, 3000).read_text(encoding="utf-8"))
    assert {len(record["output"]) for record in made} == {3000}
    varied = json.loads(records.write(tmp_path / "b.json", 50, 3000, vary=True).read_text(encoding="utf-8"))
    lengths = [len(record["output"]) for record in varied]
    assert min(lengths) >= 300
    assert max(lengths) <= 3000
    assert len(set(lengths)) > 25


def wheel(folder: Path, name: str) -> None:
    """Write a wheel with one module."""
    import zipfile

    info = f"{name}-1.0.dist-info"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"NAME = {name!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", f"{name}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def test_wheels_are_installed_once_and_unsloths_separately(tmp_path: Path) -> None:
    wheel(tmp_path / "whl", "plainthing")
    wheel(tmp_path / "whl/unsloth", "slothing")
    site = tmp_path / "site"
    all_steps, separate = wheels.paths(tmp_path / "whl", site, unsloth=False)
    assert (all_steps, separate) == ([str(site / "all")], [])
    assert (site / "all/plainthing.py").is_file()
    assert not list(site.rglob("slothing.py"))
    (site / "all/plainthing.py").unlink()
    all_steps, separate = wheels.paths(tmp_path / "whl", site, unsloth=True)
    assert not (site / "all/plainthing.py").exists(), "it is not installed twice"
    assert (Path(separate[0]) / "slothing.py").is_file()
    assert wheels.paths(None, site, unsloth=True) == ([], [])


def test_missing_wheels_are_reported(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no \*\.whl"):
        wheels.paths(tmp_path, tmp_path / "site", unsloth=False)


def test_an_unknown_part_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--parts", "first frist"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert "unknown part frist" in done.stderr


def test_the_rehearsal_runs_the_timed_parts(tmp_path: Path) -> None:
    """The command with the parts that need a GPU, in tiny shapes; `make bench-gpu` runs all of them."""
    out = tmp_path / "out"
    arguments = ("--rehearse", "--parts", "first llama serve", "--budget", str(900 * SCALE), "--out", str(out))
    done = run_script("tests/support/warm_steps.py", *arguments, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((out / "results.json").read_text())
    assert found["rehearsal"] is True
    assert {"llama-qlora", "llama-lora", "trainer-qlora"} <= found["runs"].keys()
    assert all(run["tokens_per_second"] and run["mfu"] for name, run in found["runs"].items() if name != "smoke")
    assert [one["at_once"] for one in found["serve"]["passes"]] == [1, 16, 32]
    assert {step["status"] for step in found["steps"]} <= {"ok", "skipped: needs a GPU"}
    assert sorted(file.name for file in out.iterdir()) == ["logs.tgz", "results.json", "table.md"]


def test_failures_are_printed_before_the_summary(tmp_path: Path) -> None:
    """A step that exceeds its time limit prints no summary."""
    (tmp_path / "test_it.py").write_text("def test_first():\n    assert 1 == 2\n\n\ndef test_second():\n    pass\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "xdist",
        "-n",
        "1",
        "-p",
        "bench.gpu.failures",
        str(tmp_path),
    ]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=variables, check=False)
    at_once, _, summary = done.stdout.partition("FAILURES")
    assert summary, done.stdout + done.stderr
    assert "test_it.py::test_first (call)" in at_once
    assert "assert 1 == 2" in at_once
