"""Loss, gradients and logits with other kernels, compared with those of plain torch for each family.

Liger's kernels run in Triton's interpreter here; compiled kernels and Unsloth's need a GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

import one_step
from conftest import RECORDS, ROOT, run_script
from hydraft.config.choices import Kernels
from hydraft.models.kernel_support import supported

LIGER = [f"lora/{family}" for family in supported(Kernels.liger)] + ["full/glm"]
CASES = {
    "liger": [f"{method}/{family}" for family in supported(Kernels.liger) for method in ("lora", "full")],
    "unsloth": [f"lora/{family}" for family in supported(Kernels.unsloth)],
}
BF16 = 0.05
"""Relative: two orders of summation in bf16, whose steps are 0.8 %, through two layers."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("families")
    one_step.build(place)
    return place


@pytest.fixture(scope="module")
def interpreted(folder: Path) -> dict[str, one_step.Step]:
    pytest.importorskip("liger_kernel")
    paths = [str(ROOT / "tests/support/interpreter"), str(ROOT / "src")]
    return _steps_in_process("liger", "cpu", folder, LIGER, TRITON_INTERPRET="1", PYTHONPATH=os.pathsep.join(paths))


@pytest.mark.parametrize("case", LIGER)
def test_liger_computes_the_same_as_torch(case: str, folder: Path, interpreted: dict[str, one_step.Step]) -> None:
    method, family = case.split("/")
    _assert_close(interpreted[case], one_step.step("torch", method, folder / family, "cpu"), 1e-5)


@pytest.mark.parametrize("family", one_step.MODELS)
def test_the_folders_have_the_tokenizer_that_unsloth_reads(family: str, folder: Path) -> None:
    """The call in ``load_correct_tokenizer`` that may fail; a tokenizer with a padding token needs no change."""
    tokenizer = AutoTokenizer.from_pretrained(
        folder / family, model_max_length=64, padding_side="right", token=None, trust_remote_code=False, revision=None
    )
    config = AutoConfig.from_pretrained(folder / family)
    assert len(tokenizer) == config.vocab_size == one_step.VOCABULARY
    for kind in ("pad_token_id", "eos_token_id", "bos_token_id"):
        assert getattr(tokenizer, kind) == getattr(config, kind), kind
    assert tokenizer.decode(tokenizer("一加一 = 2", add_special_tokens=False)["input_ids"]) == "一加一 = 2"


@pytest.mark.gpu
@pytest.mark.parametrize(("kernels", "case"), [(kernels, case) for kernels in CASES for case in CASES[kernels]])
def test_compiled_kernels_compute_the_same_as_torch(kernels: str, case: str, folder: Path) -> None:
    pytest.importorskip({"liger": "liger_kernel", "unsloth": "unsloth"}[kernels])
    method, family = case.split("/")
    found = _steps_in_process(kernels, "cuda", folder, [case])[case]
    _assert_close(found, one_step.step("torch", method, folder / family, "cuda"), BF16)


def _steps_in_process(
    kernels: str, device: str, folder: Path, cases: list[str], **environment: str
) -> dict[str, one_step.Step]:
    command = [sys.executable, str(ROOT / "tests/support/one_step.py"), kernels, device, str(folder), *cases]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, one_step.Step] = torch.load(folder / f"{kernels}.pt", weights_only=True)
    return found


def _assert_close(found: one_step.Step, expected: one_step.Step, tolerance: float) -> None:
    """Relative to the loss, to each gradient's norm, and to the largest logit."""
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).norm() <= tolerance * gradient.norm(), name
    assert (found[2] - expected[2]).abs().max() <= tolerance * expected[2].abs().max()


def test_a_run_with_liger_gives_the_same_result_as_with_torch(tmp_path: Path) -> None:
    """A complete run: NF4, ZeRO-3 on two ranks, and the saved adapter."""
    records = tmp_path / "records.json"
    records.write_text(json.dumps(RECORDS[:8], ensure_ascii=False))
    common = [
        "model=chatglm2", "model.init=random", "model.scale=tiny", "zero=stage3", "cluster=1x2", "lora.dropout=0", f"data.train={records}",
        "data.eval=null", "train.max_steps=2", "train.micro_batch_size=1", "train.log_every=1", "train.learning_rate=1e-3", "optimizer.eps=1e-5",
    ]  # fmt: skip
    interpreter = {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT / "tests/support/interpreter")}
    losses, adapters = [], []
    for kernels, environment in (("torch", {}), ("liger", interpreter)):
        run = run_script(
            "train.py", *common, f"kernels={kernels}", f"hydra.run.dir={tmp_path / kernels}", **environment
        )
        assert run.returncode == 0, run.stderr
        lines = [json.loads(line) for line in (tmp_path / kernels / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "learning_rate" in line])
        adapters.append(load_file(tmp_path / kernels / "adapter/adapter_model.safetensors"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert adapters[0].keys() == adapters[1].keys()
    for name, weight in adapters[0].items():
        assert (adapters[1][name] - weight).norm() <= 1e-4 * weight.norm(), name
