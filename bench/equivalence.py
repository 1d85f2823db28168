"""Train the same records with the same global batch in every topology, and print how much the results differ.

    python bench/equivalence.py                    # fp32: ZeRO stage x ranks x quant, compared with stage 0 on one rank
    python bench/equivalence.py --precision bf16
    python bench/equivalence.py --objective dpo      # or kto: preference pairs, or single answers of them
    python bench/equivalence.py --optimizer muon     # or another kind
    python bench/equivalence.py --variants           # each optimizer, each adapter and a mixture of experts, on two ranks under stages 2 and 3

Loss and gradient norm are the largest relative differences over all steps. The adapter column is the largest absolute
difference of any element after the last step (AdamW at this learning rate changes an element by up to 8e-3). The last
line names the device. On a machine with GPUs, cells with more ranks than GPUs are skipped.
"""

import argparse
import copy
import dataclasses
import functools
import json
import sys
import tempfile
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from hydraft.config import cli, rules
from hydraft.config.optimizer import ALGORITHMS, OptimizerKind
from hydraft.config.schema import Config
from hydraft.config.train import AUTO
from hydraft.errors import ConfigError
from hydraft.launch import run as launch
from hydraft.launch.verify.configs import EPS, STEPS
from hydraft.launch.verify.curves import TOLERANCE as TOLERANCE  # for each of the three columns
from hydraft.launch.verify.curves import worst
from hydraft.models import prepare
from hydraft.plan import plan
from hydraft.runs import run_folder
from hydraft.system import hardware
from hydraft.system.hardware import Hardware
from hydraft.system.source_tree import ROOT

STAGES = ("stage0", "stage1", "stage2", "stage3", "stage2_offload", "stage3_offload", "stage3_nvme")
RANKS = (1, 2)
TOPOLOGIES = [*((stage, ranks) for stage in STAGES for ranks in RANKS), ("stage3_hpz", 4)]
"""The ZeRO option and the number of ranks; of hpZ, in groups of two."""

OWN = {"stage3_nvme": ["zero.nvme_path=/var/tmp"], "stage3_hpz": ["zero.hpz_partition_size=2"]}
"""Settings that an option needs."""

QUANTS = ("none", "nf4")

SHARDED = ("stage2", "stage3")
VARIANTS = {
    **{
        f"optimizer={kind.value}": []
        for kind in OptimizerKind
        if kind not in (OptimizerKind.adamw, OptimizerKind.paged_adamw_8bit)
    },
    "optimizer.lora_plus=4": [],
    **{f"lora={name}": [] for name in ("rslora", "dora", "pissa", "olora", "eva", "loftq", "orthogonal", "lora_fa")},
    "lora=vera": ["lora.r=16"],
    "lora.rank_pattern={down_proj:4}": ["lora.layers=[0,2]"],
    "lora.modules_to_save=[norm,lm_head]": [],
    "model.size=3-30b-a3b": ["model=qwen", "model.init=random", "model.scale=tiny"],
    "model.rope=yarn": ["model.rope_factor=2"],
}
"""Of ``--variants``: what a row is about, and what else it needs."""

ROUNDED = {
    "optimizer=muon": 2e-4,
    "optimizer=adamw_8bit": 5e-2,
    "lora=pissa": 1e-4,
    "lora=loftq": 1e-4,
    "lora.modules_to_save=[norm,lm_head]": 1e-4,
}
"""Muon computes updates in bf16. 8-bit moments share a scale in blocks of 256 elements, which are others in a shard than in a tensor. PiSSA
and LoftQ start from singular vectors, of values that are close to each other: another number of threads turns them by up to 1e-4. And
torch's norm of the half million gradients of a head is rounded by 3e-5 in fp32, by stage 0 in other places than by the others."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """Results of one run."""

    losses: list[float]
    grad_norms: list[float]
    adapter: dict[str, torch.Tensor]


@functools.cache
def _composed(*overrides: str) -> Config:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return cli.typed(compose("train", list(overrides)), Config)


def compose_run(overrides: list[str], machine: Hardware | None = None) -> Config:
    """The config of ``python train.py <overrides>``, on this machine or on ``machine``."""
    machine = machine or hardware.detect()
    config = plan.resolve(copy.deepcopy(_composed(*overrides)), machine)
    if config.train.gradient_checkpointing == AUTO:
        config.train.gradient_checkpointing = False  # the results must not depend on the available memory
    rules.check(config, machine)
    prepare.check(config.model)
    return config


def prepare_run(overrides: list[str], folder: Path) -> Config:
    """Make the folder of a run, with its config.yaml, and do not start it."""
    config = compose_run(overrides)
    records = len(json.loads(Path(config.data.train).read_text()))
    run_folder.create(folder, config, plan.make_plan(config, records), hardware.detect())
    return config


def train(overrides: list[str], folder: Path) -> Curve:
    """Run ``overrides`` in ``folder`` and return what it wrote."""
    config = prepare_run(overrides, folder)
    launch.run(config, folder, quiet=True)
    curve = read(folder)
    if config.train.max_steps is not None and config.train.log_every == 1:
        assert len(curve.losses) == config.train.max_steps
    return curve


def read(folder: Path) -> Curve:
    """What the run in ``folder`` has written."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    return Curve(
        [line["loss"] for line in steps],
        [line["grad_norm"] for line in steps],
        {name: tensor.float() for name, tensor in load_file(folder / "adapter/adapter_model.safetensors").items()},
    )


def overrides_for(
    stage: str, ranks: int, quant: str, precision: str, data: Path, optimizer: str = "adamw"
) -> list[str]:
    """Overrides for the same 64 records in global batches of 8 in every topology."""
    has_eps = "eps" in ALGORITHMS[OptimizerKind(optimizer)].settings
    return [
        f"optimizer={optimizer}",
        f"zero={stage}",
        *OWN.get(stage, []),
        f"cluster=1x{ranks}",
        f"quant={quant}",
        f"train.precision={precision}",
        f"data.train={data}",
        "data.eval=null",
        "train.micro_batch_size=2",
        f"train.gradient_accumulation_steps={4 // ranks}",
        f"train.max_steps={STEPS}",
        "train.learning_rate=1e-3",
        "train.log_every=1",
        "train.warmup_ratio=0",
        "lora.dropout=0",
        *([f"optimizer.eps={EPS:g}"] if has_eps else []),
    ]


def apart(curve: Curve, reference: Curve) -> tuple[float, float, float]:
    """Relative differences of loss and gradient norm, and the absolute difference of the adapter."""
    assert len(curve.losses) == len(curve.grad_norms) == len(reference.losses)
    assert curve.adapter.keys() == reference.adapter.keys()
    return (
        worst(curve.losses, reference.losses),
        worst(curve.grad_norms, reference.grad_norms),
        furthest(curve, reference),
    )


def furthest(curve: Curve, reference: Curve) -> float:
    """The largest difference of a weight of two adapters."""
    return max(float((curve.adapter[name] - tensor).abs().max()) for name, tensor in reference.adapter.items())


def write_data(folder: Path, objective: str = "sft") -> Path:
    """Write the first 64 records that ship with the project, in the form of an objective."""
    source = "zh_tasks.train.json" if objective == "sft" else "zh_preferences.train.json"
    records = json.loads((ROOT / "data" / source).read_text())[: 8 * STEPS]
    if objective == "kto":  # of every second pair the worse answer
        records = [
            {**record, "output": record["rejected" if number % 2 else "chosen"], "label": number % 2 == 0}
            for number, record in enumerate(records)
        ]
        records = [
            {name: value for name, value in record.items() if name not in ("chosen", "rejected")} for record in records
        ]
    file = folder / f"{objective}.json"
    file.write_text(json.dumps(records, ensure_ascii=False))
    return file


def too_few_gpus(ranks: int, machine: Hardware) -> str | None:
    """Why ``machine`` cannot run ``ranks`` ranks: each needs its own GPU, while a CPU is shared."""
    if not machine.gpus or ranks <= machine.count:
        return None
    return f"needs {ranks} GPUs, {machine.count} here"


def measured_on(machine: Hardware) -> str:
    """Name the device of a table, and state whether differences from rounding are expected there."""
    if not machine.gpus:
        return "Measured on the CPU."
    return (
        f"Measured on {machine.count} x {machine.gpus[0].name}: attention's backward pass sums in no fixed order there, so two "
        "identical runs may differ in their last bits."
    )


def variants(data: Path, folder: Path, precision: str, more: list[str]) -> bool:
    """Print the table of ``--variants``; whether every cell is within its bound."""
    print(
        "| what | quant | zero | loss | gradient norm | adapter | within |\n|---|---|---|---|---|---|---|", flush=True
    )
    all_accepted = True
    for number, (name, needs) in enumerate(VARIANTS.items()):
        bound = ROUNDED.get(name, TOLERANCE[precision])
        for quant in QUANTS:
            reference = None
            for stage, ranks in (("stage0", 1), *((stage, 2) for stage in SHARDED)):
                settings = [*overrides_for(stage, ranks, quant, precision, data), *needs, name, *more]
                if name in ("optimizer=lion", "optimizer=adafactor"):  # they have no eps
                    settings.remove(f"optimizer.eps={EPS:g}")
                try:
                    curve = train(settings, folder / f"{number}-{quant}-{stage}")
                except ConfigError as error:
                    print(f"| {name} | {quant} | {stage} | – | – | – | refused: {error} |", flush=True)
                    if reference is None:
                        break
                    continue
                if reference is None:
                    reference = curve
                    continue
                cells = apart(curve, reference)
                all_accepted &= max(cells) <= bound
                numbers = " | ".join(f"{cell:.1e}" for cell in cells)
                mark = f"{bound:g}: {'yes' if max(cells) <= bound else 'NO'}"
                print(f"| {name} | {quant} | {stage} | {numbers} | {mark} |", flush=True)
    return all_accepted


def main() -> int:
    """Run the matrix and print it as a Markdown table; return 1 if a cell exceeds the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--objective", choices=("sft", "dpo", "kto"), default="sft")
    parser.add_argument("--optimizer", choices=[kind.value for kind in OptimizerKind], default="adamw")
    parser.add_argument("overrides", nargs="*", help="overrides for every run, such as model.path=…")
    parser.add_argument(
        "--variants", action="store_true", help="a row for each optimizer and adapter instead of each topology"
    )
    arguments = parser.parse_args()
    precision = arguments.precision
    if arguments.variants:
        with tempfile.TemporaryDirectory() as name:
            accepted = variants(write_data(Path(name)), Path(name), precision, arguments.overrides)
        print(f"\n{measured_on(hardware.detect())}")
        return 0 if accepted else 1
    tolerance = TOLERANCE[precision]
    all_accepted = True
    print(
        f"| quant | zero | ranks | loss | gradient norm | adapter | within {tolerance:g} |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = write_data(folder, arguments.objective)
        objective = f"objective={arguments.objective}"
        for quant in QUANTS:
            reference = None
            for stage, ranks in TOPOLOGIES:
                if reason := too_few_gpus(ranks, hardware.detect()):
                    print(f"| {quant} | {stage} | {ranks} | – | – | – | skipped: {reason} |", flush=True)
                    continue
                if "nvme" in stage and arguments.optimizer != "adamw":
                    print(f"| {quant} | {stage} | {ranks} | – | – | – | skipped: AdamW only |", flush=True)
                    continue
                run = folder / f"{quant}-{stage}-{ranks}"
                settings = overrides_for(stage, ranks, quant, precision, data, arguments.optimizer)
                curve = train([*settings, objective, *arguments.overrides], run)
                reference = reference or curve
                cells = apart(curve, reference)
                accepted = max(cells) <= tolerance
                all_accepted &= accepted
                numbers = " | ".join(f"{cell:.1e}" for cell in cells)
                mark = "reference" if curve is reference else "yes" if accepted else "NO"
                print(f"| {quant} | {stage} | {ranks} | {numbers} | {mark} |", flush=True)
    print(f"\n{measured_on(hardware.detect())}")
    return 0 if all_accepted else 1


if __name__ == "__main__":
    sys.exit(main())
