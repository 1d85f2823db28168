"""Files of an earlier version can still be used: runs resume, sweeps are reported and resumed, conversions load.

The keys of the caches contain ``the version``, and a checkpoint contains the key of its encoded records. A new version
number therefore ends this compatibility on purpose: then write the fixtures again, as described in their README.md.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.resume import metrics, weights
from conftest import ROOT, run_script
from hydraft.config.model import ModelConfig
from hydraft.models import prepare
from hydraft.models.convert.convert import convert
from hydraft.system.source_tree import TINY
from published import CHATGLM2, chatglm2_tensors, contents, save

WRITTEN = ROOT / "tests" / "fixtures" / "written_before"
RECORDS = WRITTEN / "records.json"
CUT = "step-000002"
"""The last checkpoint of both runs, which had four steps to do."""
SMALL = {"hidden_size": 16, "ffn_hidden_size": 24, "kv_channels": 4, "num_layers": 2, "padded_vocab_size": 520}
"""Sizes of the converted ChatGLM2."""
MODIFIED = 1_700_000_000 * 10**9
"""The modification time of its published files, in nanoseconds."""
SWEEP = [
    "-m", "lora.r=1,2,3", f"data.train={RECORDS}", "data.eval=null", "quant=none", "lora.target_modules=[q_proj]",
    "train.max_steps=4", "train.log_every=1", "train.micro_batch_size=2", "hydra.launcher.jobs=1",
    "data.max_length=256", "data.eval_max_new_tokens=48",  # at that time, the shipped records' values applied to any records
]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with the encoded records, as the earlier version wrote it."""
    folder = tmp_path / "cache"
    shutil.copytree(WRITTEN / "encoded", folder / "encoded")
    monkeypatch.setenv("HYDRAFT_CACHE", str(folder))
    return folder


def copied(part: str, folder: Path) -> Path:
    """A copy of a stored folder with this machine's paths; checkpoints get the tokenizer of the embedded model."""
    shutil.copytree(WRITTEN / part, folder)
    for file in folder.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".yaml"):
            text = file.read_text(encoding="utf-8")
            file.write_text(text.replace("@ROOT@", str(ROOT)).replace("@RUN@", str(folder)), encoding="utf-8")
    for listed in folder.glob("checkpoints/*/manifest.json"):
        shutil.copy(TINY / "tokenizer.json", listed.parent)
        entries = json.loads(listed.read_text(encoding="utf-8"))
        for name in ("adapter_config.json", "hydraft.json"):  # these contain paths
            data = (listed.parent / name).read_bytes()
            entries[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        listed.write_text(json.dumps(entries), encoding="utf-8")
    return folder


def assert_same_result(run: Path, finished: Path) -> None:
    """``run`` has the same result as the uninterrupted run, up to the rounding of another CPU."""
    ours, theirs = metrics(run), metrics(finished)
    for line, expected in zip(ours, theirs, strict=True):
        assert line.keys() - expected.keys() <= {"tokens"}, line["step"]  # evaluations have it since
        known = {name: line[name] for name in expected}
        assert known == pytest.approx(expected, rel=1e-5, abs=1e-6), line["step"]
    torch.testing.assert_close(weights(run), weights(finished), rtol=1e-5, atol=1e-6)
    results = [json.loads((folder / "result.json").read_text()) for folder in (run, finished)]
    for name in ("objective", "train_loss", "before", "best", "after"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-5, abs=1e-6), name
    assert results[0]["tokens"] == results[1]["tokens"] and results[0]["status"] == "completed"


@pytest.mark.parametrize("name", ["none", "nf4"])
def test_a_run_resumes_with_the_result_of_the_uninterrupted_run(name: str, tmp_path: Path, cache: Path) -> None:
    """``none``: one rank, with scores. ``nf4``: two ranks under ZeRO-3. Both use dropout, and so the random states."""
    run = copied(f"run/{name}", tmp_path / name)
    encoded = sorted(file.name for file in (cache / "encoded").iterdir())
    done = run_script("train.py", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert f"resuming from {CUT}" in done.stdout
    assert "changed:" not in done.stdout
    assert "encoding" not in done.stdout, "the encoded records are found in the cache"
    assert sorted(file.name for file in (cache / "encoded").iterdir() if file.is_dir()) == encoded
    assert_same_result(run, WRITTEN / "ended" / name)
    answer = run_script("infer.py", f"run={run}", "prompt=第3题：3加一等于几？", "max_new_tokens=4")
    assert answer.returncode == 0 and answer.stdout.strip(), answer.stderr


def test_a_checkpoint_can_be_used_for_inference(tmp_path: Path) -> None:
    run = copied("run/nf4", tmp_path / "run")
    done = run_script(
        "infer.py", f"run={run}/checkpoints/{CUT}", "mode=generate", "prompt=第3题：3加一等于几？", "max_new_tokens=4"
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_a_sweep_is_reported(tmp_path: Path) -> None:
    folder = copied("sweep", tmp_path / "sweep")
    done = subprocess.run(
        [sys.executable, "-m", "hydraft", "report", str(folder)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "2 done" in done.stdout and "1 interrupted" in done.stdout
    rows = (folder / "summary.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 4 and "5.166" in rows[1] and "5.189" in rows[2], "best first"
    assert "r=3" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_sweep_resumes_with_the_remaining_job(tmp_path: Path) -> None:
    """The sweep was killed after its third job had started."""
    folder = copied("sweep", tmp_path / "sweep")
    before = contents(folder / "r=1"), contents(folder / "r=2")
    ledger = (folder / "ledger.jsonl").read_text(encoding="utf-8")
    done = run_script("train.py", *SWEEP, f"sweep.resume={folder}")
    assert done.returncode == 0, done.stderr
    assert (contents(folder / "r=1"), contents(folder / "r=2")) == before, "completed jobs must not run again"
    after = (folder / "ledger.jsonl").read_text(encoding="utf-8")
    assert after.startswith(ledger)
    events = [json.loads(line) for line in after.removeprefix(ledger).splitlines()]
    assert [(event["name"], event["state"]) for event in events] == [("r=3", "running"), ("r=3", "done")]
    assert json.loads((folder / "r=3" / "result.json").read_text())["status"] == "completed"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The checkpoint that the conversion was made from."""
    tokenizer = (WRITTEN / "conversion" / "tokenizer.model").read_bytes()
    folder = save(tmp_path / "published", CHATGLM2 | SMALL, chatglm2_tensors(**SMALL), tokenizer, count=2)
    for file in folder.iterdir():
        os.utime(file, ns=(MODIFIED, MODIFIED))
    return folder


def test_a_conversion_in_the_cache_is_found_and_loaded(
    published: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = cache / "models" / cached_name(published)
    shutil.copytree(WRITTEN / "conversion" / "native", target)
    before = contents(target)
    native = prepare.native(ModelConfig(name="published", path=str(published)), seed=0)
    assert native.path == str(target) and "converting" not in capsys.readouterr().err
    assert list(target.parent.iterdir()) == [target] and contents(target) == before
    expected = json.loads((WRITTEN / "conversion" / "expected.json").read_text(encoding="utf-8"))
    assert AutoTokenizer.from_pretrained(native.path)(expected["text"])["input_ids"] == expected["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(native.path, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([expected["input_ids"]])).logits[0, -1, : len(expected["logits"])]
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), rtol=1e-5, atol=1e-6)


def cached_name(source: Path) -> str:
    """The name that the earlier version gave to a conversion in the cache."""
    names = [*(f"model-0000{number}-of-00002.safetensors" for number in (1, 2)), "config.json", "tokenizer.model"]
    stats: list[Any] = [(name, (source / name).stat().st_size, MODIFIED) for name in names]
    version = json.loads((WRITTEN / "conversion" / "native" / "conversion.json").read_text(encoding="utf-8"))["hydraft"]
    parts = json.dumps([version, str(source.resolve()), stats], sort_keys=True)
    return f"{source.name}-{hashlib.sha256(parts.encode()).hexdigest()[:16]}"


def test_a_conversion_into_a_named_folder_is_found(published: Path, tmp_path: Path) -> None:
    target = tmp_path / "native"
    shutil.copytree(WRITTEN / "conversion" / "native", target)
    before = contents(target)
    assert convert(published, target) == json.loads((target / "conversion.json").read_text(encoding="utf-8"))
    assert contents(target) == before
