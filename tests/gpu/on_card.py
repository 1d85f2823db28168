"""Commands on a GPU, and checks of their results. No test uses a device before its command runs."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import run_script

ON_CPU = bool(os.environ.get("HYDRAFT_GPU_TESTS_ON_CPU"))
DEVICE = torch.device("cpu") if ON_CPU else torch.device("cuda", 0)
gpu_only = pytest.mark.skipif(ON_CPU, reason="needs a GPU")


def run(script: str, *overrides: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command, which must succeed, in a new process, since a fork could not use CUDA."""
    done = run_script(script, *overrides, timeout=seconds, PYTHONUNBUFFERED="1")
    assert done.returncode == 0, f"{' '.join(overrides)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done


def train(folder: Path, records: Path, *overrides: str) -> dict[str, Any]:
    """Train four steps in bf16 by default, check the trained weights, and return result.json."""
    run(
        "train.py", f"data.train={records}", "data.eval=null", "train.max_steps=4", "train.micro_batch_size=4", "train.log_every=1",
        "train.learning_rate=1e-3", "train.precision=bf16", f"hydra.run.dir={folder}", *overrides,
    )  # fmt: skip
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    assert result["status"] == "completed"
    found = weights(folder)
    assert found and all(value.isfinite().all() for value in found.values())
    assert all(value.any() for name, value in found.items() if "lora_B" in name), "the adapter is unchanged"
    return result


def losses(folder: Path) -> list[float]:
    """The loss of each step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "learning_rate" in line]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a run has trained."""
    files = [*folder.glob("adapter/*.safetensors"), *folder.glob("model/*.safetensors")]
    return {name: value for file in files for name, value in load_file(file).items()}
