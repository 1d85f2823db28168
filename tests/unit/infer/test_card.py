"""The card of an export has the run's own command, and neither secrets nor this machine's folders."""

import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from test_merge import trained

import folders
from conftest import config_of
from hydraft.config.choices import ExportKind
from hydraft.config.infer import InferConfig
from hydraft.config.schema import save_config
from hydraft.infer.export import card_head, model_card, portable
from hydraft.infer.resolve import find
from hydraft.infer.source import Source
from hydraft.models import base_identity
from hydraft.system import files
from hydraft.system.source_tree import ROOT, TINY

SECRET = "hunter2Zz9"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """An adapter of a job in a sweep, trained on files of this machine over a base with a card, in a current folder with a space."""
    here = tmp_path / "of me"
    here.mkdir()
    monkeypatch.chdir(here)
    base = here / "my base"
    base.mkdir()
    for file in TINY.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    (base / "README.md").write_text(
        f"---\nlicense: other\nlicense_name: my-license\nlicense_link: {here}/LICENSE\nlanguage: [zh, en]\nbase_model: {here}\n---\n"
    )
    typed = {
        "lora.r": 4,
        "data.train": f"'[{here}/train set.json,{ROOT}/data/zh_tasks.train.json]'",
        "data.mix": f"['{here}/more.jsonl*0.5','owner/records:train*2']",
        "data.eval": f"{here}/held out.json",
        "model": "auto",
        "model.path": str(base),
        "data.template": r"'[INST]{instruction}</s>[/INST] http://h/a/b'",
        "cluster.slurm.setup": f"['source /opt/env/bin/activate','cd {tmp_path}/x','export MY_PASS={SECRET}']",
    }
    sweep = folders.make(here / "sweep", [typed, {**typed, "lora.r": 8}], about={"command": ["train.py", "-m", "x"]})
    run = next(path.parent for path in sweep.glob("*4*/config.yaml"))
    config = config_of(*(f"{key}={value}" for key, value in typed.items()))
    save_config(config, run / "config.yaml")
    result = {"after": {"loss": 1.5, "benchmark/ceval": 0.25, "benchmark/ceval/acc_norm": 0.5}, "before": {"loss": 2}}
    files.write_json(run / "result.json", result)
    files.write_json(
        run / "environment.json",
        {"command": [f"{ROOT}/train.py", "-m", "lora.r=4,8", f"model.path={base}", f"hydra.sweep.dir={sweep}"]},
    )
    files.write_json(run / "benchmarks.json", {"adapter": {"cmmlu": {"after": {"acc,none": 0.75}}}})
    trained(run / "adapter", base, target_modules=["q_proj"])
    files.write_json(run / "adapter" / base_identity.NAME, base_identity.of(config))
    (found,) = find(InferConfig(run=str(run)))
    return found


def test_a_card_has_the_jobs_own_command_and_nothing_of_this_machine(source: Source, tmp_path: Path) -> None:
    text = model_card.card(source, ExportKind.adapter, tmp_path / "out", source.model.path, None, None)
    for private in (str(tmp_path), "of me", str(ROOT), str(Path.home()), "/opt/env", SECRET, " -m ", "lora.r=4,8"):
        assert private not in text, private
    command = re.search(r"## Command\n\n```bash\n(.*)\n```", text)
    assert command is not None
    python, script, *overrides = shlex.split(command[1])
    assert [python, script] == ["python", "train.py"]
    assert overrides == [
        "lora.r=4", "data.train='[train set.json,data/zh_tasks.train.json]'", "data.mix=['more.jsonl*0.5','owner/records:train*2']",
        "data.eval=held out.json", "model=auto", "model.path=my base", "data.template='[INST]{instruction}</s>[/INST] http://h/a/b'",
        "cluster.slurm.setup=['source activate','cd x','export MY_PASS=…']",
    ]  # fmt: skip
    assert "mixed with `more.jsonl*0.5`" in text and "[/INST] http://h/a/b" in text
    assert "| cmmlu | acc | – | 0.750 |" in text and "| benchmark/ceval | – | 0.250 |" in text
    assert "vllm serve 'my base'" in text


def test_the_head_of_a_card_is_read_by_the_hubs_client(source: Source, tmp_path: Path) -> None:
    card = ModelCard(model_card.card(source, ExportKind.adapter, tmp_path / "out", source.model.path, None, None))
    assert card.data.license == "other" and card.data.license_name == "my-license"
    assert card.data.get("license_link") is None  # a path of this machine
    assert card.data.language == ["zh", "en"] and card.data.datasets == ["owner/records"]
    assert card.data.base_model is None and card.data.library_name == "peft"
    assert {(one.dataset_name, one.metric_type): one.metric_value for one in card.data.eval_results or []} == {
        ("held out.json", "loss"): 1.5, ("ceval", "score"): 0.25, ("ceval", "acc_norm"): 0.5,
    }  # fmt: skip
    source.model.path = "owner/base"
    card = ModelCard(card_head.head(source, ExportKind.merged, "out", "mit") + "\n")
    assert (card.data.base_model, card.data.license) == ("owner/base", "mit")
    assert card.data.get("base_model_relation") == "finetune" and card.data.get("license_name") is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("PATH=/usr/local/bin:/opt/x/bin", "PATH=bin:bin"),
        ("https://host/a/b and and/or 1/2 </s> [/INST] ./a/b", "https://host/a/b and and/or 1/2 </s> [/INST] ./a/b"),
        ("cd /home/someone/x && ls", "cd x && ls"),
        ("file:///srv/data/x.json ~other/secret/y", "x.json y"),
        (f"{ROOT}/data/a.json", "data/a.json"),
    ],
)
def test_folders_are_left_out_of_texts(given: str, expected: str) -> None:
    assert portable.text(given) == expected
