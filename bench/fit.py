"""The fewest GPUs that train each family and size under each ZeRO stage, according to the plan, as a Markdown table.

    python bench/fit.py                                  # quant=nf4, LoRA r 8, micro-batch 1, 512 tokens, bf16
    python bench/fit.py quant=none                       # the same with weights in bf16
    python bench/fit.py train.gradient_checkpointing=true data.max_length=4096
    python bench/fit.py quant=nf4 --models llama3-3.1-70b qwen-2.5-72b --stages stage3 stage3_offload

A cell holds the fewest GPUs of 16 GiB, of 24 GiB and of 80 GiB; a dash means that 64 are not enough. The column before the
cells is the peak memory of a single GPU under stage2. Main memory is assumed to be sufficient.
"""

import argparse
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.equivalence import compose_run  # noqa: E402
from hydraft.config.schema import Config  # noqa: E402
from hydraft.plan.memory import memory  # noqa: E402
from hydraft.plan.model_size import ModelSize  # noqa: E402
from hydraft.plan.parameters import trained  # noqa: E402
from hydraft.plan.plan import fits_memory, known_layout  # noqa: E402
from hydraft.plan.suggest import apply  # noqa: E402
from hydraft.system.hardware import Gpu, Hardware  # noqa: E402

STAGES = ("stage0", "stage1", "stage2", "stage2_offload", "stage3", "stage3_offload")
CARDS = (16, 24, 80)
"""GiB."""
COUNTS = (1, 2, 4, 8, 16, 32, 64)
PER_MACHINE = 8
SETTINGS = ["mode=plan", "train.precision=bf16", "train.micro_batch_size=1", "data.max_length=512"]


def fewest(config: Config, subject: ModelSize, gibibytes: int) -> str:
    """The smallest of ``COUNTS`` GPUs on which ``config`` fits."""
    machine = Hardware(gpus=(Gpu("card", gibibytes << 30, 8.0),))
    for count in COUNTS:
        nodes, ranks = max(1, count // PER_MACHINE), min(count, PER_MACHINE)
        spread = apply(config, [("cluster.nodes", nodes), ("cluster.ranks_per_node", ranks)])
        if fits_memory(spread, memory(spread, subject, on_gpu=True), machine):
            return str(count)
    return "–"


def sizes() -> list[tuple[str, str]]:
    """All model families and sizes in conf/model."""
    files = sorted((ROOT / "conf" / "model").glob("*.yaml"))
    return [(file.stem, str(size)) for file in files for size in yaml.safe_load(file.read_text()).get("sizes", {})]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="overrides for every cell, such as quant=none")
    parser.add_argument("--models", nargs="*", help="only these, as FAMILY-SIZE")
    parser.add_argument("--stages", nargs="*", default=STAGES, help="only these columns")
    arguments = parser.parse_args()
    more, stages = arguments.overrides, arguments.stages
    print("| model | parameters | GiB | " + " | ".join(stages) + " |\n" + "|---" * (3 + len(stages)) + "|")
    for family, size in sizes():
        if arguments.models and f"{family}-{size}" not in arguments.models:
            continue
        cells, peak, count = [], 0.0, 0
        for stage in ("stage2", *stages):
            config = compose_run([f"model={family}", f"model.size={size}", f"zero={stage}", *SETTINGS, *more])
            layout, _ = known_layout(config)
            assert layout is not None
            subject = ModelSize(layout, trained(layout, config.lora), labelled=config.data.max_length)
            count = layout.count
            peak = peak or memory(config, subject, on_gpu=True).peak / 2**30  # of stage2, the first
            cells.append(" / ".join(fewest(config, subject, card) for card in CARDS))
        print(f"| {family} {size} | {count / 1e9:.1f} B | {peak:.1f} | {' | '.join(cells[1:])} |", flush=True)


if __name__ == "__main__":
    main()
