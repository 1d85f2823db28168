"""Compare planned and measured memory.

    python bench/memory.py                  # with a GPU: short runs, torch.cuda.max_memory_allocated and the plan
                                            # without: weights and optimizer state in this process's own memory
    python bench/memory.py outputs/…/…      # finished runs: plan.json and the peaks of result.json

On a GPU, the memory of the driver and the unused memory of the allocator are left out of both. On a CPU, weights and
optimizer state are measured as anonymous pages after freed ones are returned. A step is the highest resident memory
minus that before the step, in a process whose C library returns freed memory at once (by default, it keeps about as
much again as the activations take).
"""

import argparse
import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

MODEL = [
    "model=qwen",
    "model.size=2.5-0.5b",
    "model.init=random",
    "lora.r=64",
    "train.micro_batch_size=1",
    "data.max_length=512",
]
ON_CPU = (
    "quant=none zero=stage0", "quant=none zero=stage2", "quant=nf4 zero=stage2", "quant=int8 zero=stage2", "quant=nf4 zero=stage3",
    "quant=nf4 zero=stage2 train.gradient_checkpointing=true",
)  # fmt: skip
ON_GPU = (
    "quant=none zero=stage0", "quant=none zero=stage2", "quant=nf4 zero=stage2", "quant=nf4 zero=stage3",
    "quant=nf4 zero=stage2 train.gradient_checkpointing=true", "quant=nf4 zero=stage2 data.batching=padded train.micro_batch_size=4",
    "quant=nf4 zero=stage2 lora.dropout=0.1", "quant=none lora=none zero=stage2",
)  # fmt: skip


def anonymous() -> int:
    """Bytes of this process's anonymous memory, after freed memory is returned to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/smaps_rollup has no Anonymous line")


def status(name: str) -> int:
    """Bytes in a line of /proc/self/status."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def resident(overrides: list[str]) -> dict[str, int]:
    """Train a model in this process; return the bytes added by weights, optimizer state and a step at full length."""
    import deepspeed
    import torch
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    from bench.equivalence import compose_run
    from hydraft.models import prepare
    from hydraft.models.load import load_trainable, trainable
    from hydraft.system import hardware
    from hydraft.training import deepspeed_ops
    from hydraft.training.zero import deepspeed_config

    config = compose_run(overrides)
    machine = hardware.detect()
    deepspeed_ops.prepare(deepspeed_ops.needed(config, machine), machine)
    os.environ.update(deepspeed_ops.environment(machine))
    os.environ.update(
        {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    )
    rendezvous = tempfile.NamedTemporaryFile()  # noqa: SIM115 (there until this process ends)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous.name}", rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    model_section = prepare.native(config.model, config.seed)
    torch.ones(512, 512) @ torch.ones(512, 512)  # creates threads and their buffers before the measurement
    start = anonymous()
    # as TrainingArguments keep it: under ZeRO-3 the model is sharded while it is loaded
    sharding = HfDeepSpeedConfig(deepspeed_config(config)) if config.zero.stage == 3 else None
    model = load_trainable(dataclasses.replace(config, model=model_section))
    loaded = anonymous()
    optimizer = torch.optim.AdamW(list(trainable(model).values()), lr=1e-4, fused=True)
    if config.train.recomputes:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config(config))
    del sharding
    engine.train()
    ids = torch.arange(9, 17)[None]  # no padding token: the gradient of its zero embedding is not a number
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()
    stepped = anonymous()
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = status("VmRSS")
    ids = torch.arange(9, 9 + config.data.max_length)[None]
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    return {"weights": loaded - start, "optimizer": stepped - loaded, "step": status("VmHWM") - before}


def planned(overrides: list[str]) -> Any:
    """The plan's cost of ``overrides``."""
    from bench.equivalence import compose_run
    from hydraft.plan.plan import make_plan

    cost = make_plan(compose_run(overrides), 64).cost
    assert cost is not None
    return cost


def on_cpu() -> None:
    """Compare each case in its own process."""
    print("No GPU here: peaks cannot be measured. What stays in memory can:\n")
    kinds = ("weights", "optimizer", "step")
    print(
        "| run | "
        + " | ".join(f"{kind}: plan | measured | " for kind in kinds)
        + "|\n|---"
        + "|---" * 3 * len(kinds)
        + "|"
    )
    for case in ON_CPU:
        overrides = [*MODEL, *case.split(), "train.precision=fp32"]
        command = [sys.executable, __file__, "--measure", *overrides]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        measured = json.loads(done.stdout.splitlines()[-1])
        parts = planned(overrides).memory.host_training
        kept_buffers = (
            parts.gradients + parts.buffers if "stage3" in case else 0
        )  # stage 3 keeps its buffers between steps
        ours = (parts.weights + parts.adapter, parts.optimizer + kept_buffers, parts.activations + parts.logits)
        cells = " | ".join(row(plan, measured[kind]) for plan, kind in zip(ours, kinds, strict=True))
        print(f"| {case} | {cells} |", flush=True)


def on_gpu() -> None:
    """Train each case for three steps."""
    from bench.equivalence import train, write_data
    from bench.results import write

    print(f"{HEAD}")
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        data = write_data(Path(name))
        for number, case in enumerate(ON_GPU):
            folder = Path(name) / str(number)
            # train() expects more steps for its curve; the run itself is complete
            with contextlib.suppress(AssertionError):
                train(
                    [
                        *MODEL,
                        *case.split(),
                        f"data.train={data}",
                        "data.eval=null",
                        "train.max_steps=3",
                        "train.log_every=1",
                    ],
                    folder,
                )
            rows.append(finished(folder, case))
            print(rows[-1], flush=True)
    print(f"\n{write('memory', rows)}")


PEAKS = {
    "loading": "peak_memory_loading_bytes",
    "training": "peak_memory_bytes",
    "scoring": "peak_memory_scoring_bytes",
}
"""The keys in result.json of the plan's moments."""

RESIDENT = "resident at its end"
"""The only moment of a run on a CPU."""

HEAD = "| run | plan | measured | |\n|---|---|---|---|"


def finished(folder: Path, name: str) -> str:
    """Table rows of a run's folder, one for each moment."""
    found = compared(folder)
    if not found:
        return f"| {name} | | | did not finish |"
    return "\n".join(
        f"| {name} ({RESIDENT}) | {row(*figures)} |"
        if moment == RESIDENT
        else f"| {name}, {moment} | {row(*figures)} |"
        for moment, figures in found.items()
    )


def compared(folder: Path) -> dict[str, tuple[int, int]]:
    """Planned and measured bytes of a finished run, by moment; empty if the run did not finish or has no plan.

    On a GPU, neither includes the memory of the driver and the allocator's unused memory.
    """
    files = [folder / name for name in ("plan.json", "result.json")]
    if not all(file.is_file() for file in files):
        return {}
    plan, result = (json.loads(file.read_text()) for file in files)
    if "peak_memory_bytes" not in result or plan["cost"] is None:
        return {}
    memory = plan["cost"]["memory"]
    if plan["gpu_memory"] is None:
        return {RESIDENT: (sum(memory["host_training"].values()), result["peak_memory_bytes"])}
    return {
        moment: (sum(memory[moment].values()) - memory[moment]["overhead"], result[key])
        for moment, key in PEAKS.items()
        if result.get(key) is not None and moment in memory
    }


def row(plan: int, measured: int) -> str:
    """Both numbers in MiB, and the relative error of the plan."""
    return f"{plan / 2**20:,.0f} | {measured / 2**20:,.0f} | {plan / measured - 1:+.0%}"


def main() -> None:
    """Run the comparison for the given runs, the GPU or the CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="folders of finished runs")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(resident(arguments.runs)))
    elif arguments.runs:
        print(HEAD)
        for run in arguments.runs:
            print(finished(Path(run), run))
    else:
        from hydraft.system import hardware

        on_gpu() if hardware.detect().gpus else on_cpu()


if __name__ == "__main__":
    main()
