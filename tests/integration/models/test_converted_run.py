"""A run with a converted ChatGLM2 prints the notice about system turns, even if the records come from the cache."""

import json
from pathlib import Path

import pytest

from conftest import run_script
from hydraft.models.convert.convert import convert
from published import CHATGLM2, chatglm2_tensors, save, sentencepiece_model

RECORDS = [
    {"instruction": "你好", "output": "你好，请问有什么可以帮您？", "system": "你是客服"},
    {"instruction": "再见</s>[gMASK]", "output": "再见", "history": [["你好", "你好"]]},
] * 4


def test_every_run_prints_the_notice_on_system_turns_and_the_first_encodes_the_records(tmp_path: Path) -> None:
    source = save(tmp_path / "published", CHATGLM2, chatglm2_tensors(), sentencepiece_model())
    convert(source, tmp_path / "native")
    records = tmp_path / "records.json"
    records.write_text(json.dumps(RECORDS, ensure_ascii=False), encoding="utf-8")
    losses = []
    for name in ("first", "second"):
        done = run_script(
            "train.py", "model=auto", f"model.path={tmp_path / 'native'}", "quant=none", f"data.train={records}",
            "data.eval=null", "cluster=1x2", "train.max_steps=2", "train.log_every=1", f"hydra.run.dir={tmp_path / name}",
            HYDRAFT_CACHE=str(tmp_path / "cache"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("4 records have a system turn, which this model's chat template does not support") == 1
        assert done.stdout.count("encoding …") == (name == "first")
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
