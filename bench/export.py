"""Peak memory and time of an export, beside merging in memory with peft alone.

    python bench/export.py [model=qwen model.size=2.5-0.5b quant=nf4 …]

The base has random weights, and the adapter is not trained. Counted are anonymous pages (RssAnon in /proc/PID/status): the system can drop
pages of mapped files, and read them again. peft's merge is that of its documentation: over the base in bf16, without the comparison of the
logits with those of the trained model, which an export makes.
"""

import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import peft
import torch
from rich.console import Console
from transformers import AutoTokenizer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.equivalence import compose_run  # noqa: E402
from hydraft.config.schema import save_config  # noqa: E402
from hydraft.models import base_identity, prepare  # noqa: E402
from hydraft.models.load import load_base  # noqa: E402
from hydraft.models.lora import adapter, targets  # noqa: E402
from hydraft.system import files  # noqa: E402

OVERRIDES = ["model=qwen", "model.size=2.5-0.5b", "quant=nf4"]
PLAIN = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, target = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), adapter)
model.merge_and_unload(safe_merge=True).save_pretrained(target)
"""


def make(folder: Path, overrides: list[str]) -> str:
    """Write a run's folder with an adapter that is not trained; its base."""
    config = compose_run([*overrides, "model.init=random", "train.precision=bf16"])
    section = prepare.native(config.model, config.seed)
    base = load_base(section, config.quant, config.train.precision)
    lora = adapter(config.lora, targets(config.lora, base))
    adapted = peft.get_peft_model(base, lora)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.01)
    adapted.save_pretrained(folder / "adapter")
    AutoTokenizer.from_pretrained(section.path).save_pretrained(folder / "adapter")
    files.write_json(folder / "adapter" / base_identity.NAME, base_identity.of(config))
    save_config(config, folder / "config.yaml")
    return section.path


def measured(command: list[str]) -> tuple[float, float]:
    """The largest sum of anonymous pages, in MiB, and the seconds that a command takes."""
    began, peak = time.monotonic(), 0
    own = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # the C library returns freed memory at once
    process = subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        peak = max(peak, int(found[1]) if found else 0)
        time.sleep(0.02)
    assert process.returncode == 0, command
    return peak / 1024, time.monotonic() - began


def main(overrides: list[str]) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as scratch:
        run, target = Path(scratch) / "run", Path(scratch) / "out"
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            base = pool.submit(make, run, overrides).result()
        commands = {
            "imports of peft and transformers": [sys.executable, "-c", "import peft, transformers, torch; from transformers import AutoModelForCausalLM"],
            "peft: merge_and_unload, save_pretrained": [sys.executable, "-c", PLAIN, base, str(run / "adapter"), str(target)],
            "infer.py mode=export": [sys.executable, "infer.py", "mode=export", f"run={run}", f"output={target}", "device=cpu"],
        }  # fmt: skip
        size = sum(file.stat().st_size for file in Path(base).glob("*.safetensors")) / 2**20
        console = Console(soft_wrap=True)
        console.print(f"{' '.join(overrides)}: {size:,.0f} MiB of weights", markup=False)
        console.print("\n| | anonymous memory, MiB | seconds |\n|---|---|---|", markup=False)
        for name, command in commands.items():
            peak, seconds = measured(command)
            console.print(f"| {name} | {peak:,.0f} | {seconds:.0f} |", markup=False)
            shutil.rmtree(target, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:] or OVERRIDES)
