"""Every family trains from random weights of its architecture, quantised or not, sharded or not, with equal results."""

import json
from pathlib import Path

import pytest
import yaml

from bench.equivalence import Curve, apart, train, write_data
from conftest import ROOT, run_script
from families import FAMILIES, PUBLISHED
from hydraft.models.families.registry import native_targets


def test_every_shipped_size_is_counted() -> None:
    shipped = {
        (file.stem, str(size))
        for file in (ROOT / "conf/model").glob("*.yaml")
        for size in yaml.safe_load(file.read_text(encoding="utf-8")).get("sizes", {})
    }
    assert shipped == set(PUBLISHED)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("quant", ["none", "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_sharded_and_unsharded_with_equal_results(
    family: str, quant: str, data: Path, tmp_path: Path
) -> None:
    def run(stage: str) -> Curve:
        overrides = [
            *FAMILIES[family].split(), "model.init=random", "model.scale=tiny", f"quant={quant}", f"zero={stage}",
            "cluster=1x2", "data.eval=null", f"data.train={data}", "train.max_steps=3", "train.log_every=1",
            "train.micro_batch_size=2", "train.learning_rate=1e-3", "optimizer.eps=1e-5",
        ]  # fmt: skip
        return train(overrides, tmp_path / stage)

    whole, sharded = run("stage2"), run("stage3")
    assert max(apart(sharded, whole)) <= 1e-5
    assert min(whole.grad_norms) > 0.1
    assert any(tensor.any() for name, tensor in whole.adapter.items() if "lora_B" in name)


def test_a_run_with_random_weights_needs_no_download(data: Path, tmp_path: Path) -> None:
    """The trained model then answers (nonsense), from the same random weights."""
    overrides = ["model=chatglm2", "model.init=random", "model.scale=tiny", "zero=stage3", "cluster=1x2", "quant=nf4"]
    done = run_script(
        "train.py", *overrides, f"hydra.run.dir={tmp_path}/run", f"data.train={data}", "train.max_steps=2",
        "train.micro_batch_size=2", "data.eval_limit=4", "data.eval_max_new_tokens=2", "lora.target_modules=[query_key_value]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "query_key_value of the published checkpoint is k_proj, q_proj, v_proj in the native model" in done.stdout
    adapter = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert sorted(adapter["target_modules"]) == ["k_proj", "q_proj", "v_proj"]
    answered = run_script("infer.py", f"run={tmp_path}/run", "prompt=你好", "max_new_tokens=2")
    assert answered.returncode == 0, answered.stderr


def test_target_names_of_the_published_layout_are_translated() -> None:
    glm = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}
    assert native_targets(["query_key_value", "dense_4h_to_h"], glm) == ["q_proj", "k_proj", "v_proj", "down_proj"]
    assert native_targets(["gate_proj", "up_proj"], glm) == ["gate_up_proj"]
    llama = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert native_targets(["W_pack", "gate_proj"], llama) == ["q_proj", "k_proj", "v_proj", "gate_proj"]
    assert native_targets(["query_key_value"], {"query_key_value"}) == ["query_key_value"]
    assert native_targets(["all-linear"], llama) == ["all-linear"]
