"""Benchmarks of a trained model, against lm-evaluation-harness itself on the same model and on its export."""

import json
from pathlib import Path
from typing import Any

import pytest

from conftest import run_script

pytest.importorskip("lm_eval")

from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM

from hydraft.config.choices import InferMode
from hydraft.config.infer import InferConfig
from hydraft.config.score import LOWER_METRICS
from hydraft.errors import ConfigError
from hydraft.evaluation.benchmarks import tasks
from hydraft.evaluation.benchmarks.harness import Harness
from hydraft.infer import resolve
from hydraft.infer.load import load

ROOT = Path(__file__).parents[3]
TASK = str(ROOT / "data" / "zh_general.yaml")
QUESTIONS = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in NF4 on two ranks under ZeRO-3, with the benchmark before and after."""
    folder = tmp_path_factory.mktemp("benchmark") / "run"
    limits = ["train.max_steps=4", "data.eval_limit=2", "train.eval_every=null", f"data.benchmark_limit={QUESTIONS}"]
    done = run_script(
        "train.py",
        "experiment=zh_sentiment",
        f"data.benchmark={TASK}",
        "cluster=1x2",
        "zero=stage3",
        *limits,
        f"hydra.run.dir={folder}",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "benchmark zh_general" in done.stdout
    return folder


def log_likelihoods(model: HFLM, found: tasks.Tasks) -> tuple[list[float], dict[str, Any]]:
    """Of each choice, and the scores."""
    results = evaluator.evaluate(model, found.loaded, limit=QUESTIONS, bootstrap_iters=10)
    samples = results["samples"]["zh_general"]
    return [choice[0][0] for one in samples for choice in one["resps"]], results["results"]["zh_general"]


def test_scores_are_those_of_the_harness(run: Path, tmp_path: Path) -> None:
    """In fp32 on a CPU: of the quantised model with its adapter, and of the merged weights of the dequantised base."""
    done = run_script(
        "infer.py",
        "mode=evaluate",
        f"run={run}",
        f"benchmark={TASK}",
        f"benchmark_limit={QUESTIONS}",
        "before=true",
        "batch_size=7",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    written = json.loads((run / "benchmarks.json").read_text())["adapter"]["zh_general"]
    trained = json.loads((run / "result.json").read_text())
    for when in ("before", "after"):  # as on two ranks
        assert written[when]["acc,none"] == trained[when]["benchmark/zh_general"]
    shared = tmp_path / "shared.json"
    done = run_script(
        "infer.py", "mode=evaluate", f"run={run}", f"benchmark={TASK}", "before=true", "cluster=1x2", f"output={shared}",
        f"benchmark_limit={QUESTIONS}", "batch_size=7",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    by_two = json.loads(shared.read_text())["adapter"]["zh_general"]
    assert [by_two[when] for when in ("before", "after")] == [written[when] for when in ("before", "after")]
    exported = tmp_path / "exported"
    done = run_script("infer.py", "mode=export", f"run={run}", f"output={exported}", "export.dtype=fp32")
    assert done.returncode == 0, done.stderr[-2000:]

    options = InferConfig(mode=InferMode.evaluate, run=str(run))
    loaded = load(resolve.find(options), options)
    found, tokenizer = tasks.load(tasks.Requested([TASK])), loaded.select().tokenizer
    own, scores = log_likelihoods(Harness(loaded.model, tokenizer, loaded.device, lambda *_: 5, lambda _: None), found)
    same, theirs = log_likelihoods(HFLM(pretrained=loaded.model, tokenizer=tokenizer, batch_size=16), found)
    merged, of_export = log_likelihoods(
        HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=16), found
    )
    assert own == pytest.approx(same, abs=1e-4)
    assert own == pytest.approx(merged, abs=1e-3)
    with loaded.model.disable_adapter():
        base, _ = log_likelihoods(Harness(loaded.model, tokenizer, loaded.device, lambda *_: 5, lambda _: None), found)
    assert max(abs(a - b) for a, b in zip(own, base, strict=True)) > 0.01  # the adapter counts
    names = ("acc,none", "acc_stderr,none", "acc_norm,none")
    assert [scores[name] for name in names] == [theirs[name] for name in names] == [of_export[name] for name in names]
    assert [written["after"][name] for name in ("acc,none", "acc_norm,none")] == [
        scores["acc,none"],
        scores["acc_norm,none"],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: x\nprocess_docs: !function utils.f\n", "trust_remote_code=true"),
        ("task: x\nmetric_list: [{metric: made_up}]\n", "the metric made_up"),
        ("dataset_path: json\n", "is not a task"),
        ("task: [", "is not a task"),
        ("task: x\ndataset_path: json\ndataset_kwargs: {data_files: gone.json}\n", "cannot be loaded"),
        (None, "no such file"),
    ],
)
def test_wrong_task_files_are_refused(text: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        tasks.load(tasks.Requested([str(file)]))


def test_templates_of_a_task_cannot_run_python(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('[{"a": 1}]')
    (tmp_path / "task.yaml").write_text(
        "task: x\ndataset_path: json\ndataset_kwargs: {data_files: {test: one.json}}\ntest_split: test\noutput_type: generate_until\ndoc_to_text: a\ndoc_to_target: a\n"
    )
    tasks.load(tasks.Requested([str(tmp_path / "task.yaml")]))
    from lm_eval.utils import apply_template

    with pytest.raises(Exception, match="unsafe"):
        apply_template("{{ cycler.__init__.__globals__.os.getpid() }}", {})


def test_which_metrics_are_costs() -> None:
    """``config/score.py`` has those of the harness of which less is better."""
    from lm_eval.api.registry import higher_is_better_registry

    assert {name for name, higher in higher_is_better_registry.items() if higher is False} == set(LOWER_METRICS)
