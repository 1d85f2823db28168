"""Measure how long a model takes to load in 4 bits, its peak memory, and the bytes read from disk.

    python bench/loading.py                # Qwen2.5-0.5B's shape, random weights (1 GB on disk)
    python bench/loading.py --shape 8b     # Llama-3.1-8B's (22 GB on disk, and 8 GB of memory)

The variants take turns, each in new processes, and medians are shown. Before each, the files are dropped from the page cache. Seconds
are those of the slowest rank, from the call that loads to the sharded model, without imports; core-seconds, those of all ranks, depend
less on what else runs on the machine. Memory is the most of any rank: anonymous pages, without those of mapped files. Bytes read are
those that the disk delivered to all ranks (read_bytes of /proc/PID/io). In brackets: relative to transformers.

``each rank whole`` has every rank quantise every weight and keep its share, as a loader without an exchange of scales would. The 4-bit
folder is the one that transformers saves.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

SHAPES = {"0.5b": "model=qwen model.size=2.5-0.5b", "8b": "model=llama3 model.size=3.1-8b"}
BASELINE = "transformers"
VARIANTS = {
    BASELINE: ("plain", 1, False),
    "ZeRO-2": ("ours", 1, False),
    "ZeRO-2, stored in 4 bits": ("ours", 1, True),
    "ZeRO-3, 1 rank": ("sharded", 1, False),
    "ZeRO-3, 2 ranks": ("sharded", 2, False),
    "ZeRO-3, 2 ranks, each rank whole": ("whole", 2, False),
    "ZeRO-3, 2 ranks, stored in 4 bits": ("sharded", 2, True),
}
"""How it is loaded, the number of ranks, and whether from the 4-bit folder."""
UNITS = {"seconds": (1, 1), "core-seconds": (1, 1), "memory": (2**30, 2), "read": (2**30, 2)}
"""What is measured, with the unit and the digits of the table."""
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Has the C library return freed memory to the system at once: how much it keeps differs from run to run."""
INTERVAL = 0.005
"""Seconds between two looks at the memory."""


def anonymous() -> int:
    """Bytes of this process's anonymous memory."""
    from bench.memory import status

    return status("RssAnon")


def read() -> int:
    """Bytes that the disk has delivered to this process."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


class Peak(threading.Thread):
    """Looks at the memory of this process until it is stopped."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.begin = self.highest = anonymous()
        self.ended = threading.Event()

    def run(self) -> None:
        """Look at it again and again."""
        while not self.ended.wait(INTERVAL):
            self.highest = max(self.highest, anonymous())

    def stop(self) -> int:
        """The most bytes beyond those at the beginning."""
        self.ended.set()
        self.join()
        return max(self.highest, anonymous()) - self.begin


def drop(folder: Path) -> None:
    """Drop the files of a folder from the page cache."""
    for file in folder.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)  # pages that are not written yet stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def plain(folder: Path) -> Any:
    """transformers' model, quantised by bitsandbytes."""
    import torch
    from transformers import AutoModelForCausalLM

    from hydraft.config.choices import Precision, QuantKind
    from hydraft.config.schema import QuantConfig
    from hydraft.models.quant import bits_and_bytes

    quant = bits_and_bytes(QuantConfig(kind=QuantKind.nf4), Precision.bf16)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=quant)


def load(how: str, folder: Path, ranks: int) -> dict[str, float]:
    """Load the model on this rank: seconds, core-seconds, bytes of memory and bytes read, of all ranks."""
    import deepspeed
    import torch
    import torch.distributed as dist
    import transformers
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    from bench import stacks
    from hydraft.models.load import load_base
    from hydraft.system import hardware
    from hydraft.training import deepspeed_ops

    transformers.logging.disable_progress_bar()
    os.environ.update(deepspeed_ops.environment(hardware.detect()))
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    config = stacks.settings(folder, ranks)
    sharded = how in ("sharded", "whole")
    active = HfDeepSpeedConfig(stacks.deepspeed_settings(config)) if sharded else None
    torch.ones(512, 512) @ torch.ones(512, 512)  # creates threads and their buffers
    dist.barrier()
    before, cores, peak = read(), time.process_time(), Peak()
    peak.start()
    began = time.perf_counter()
    with quantised_whole() if how == "whole" else contextlib.nullcontext():
        model = plain(folder) if how == "plain" else load_base(config.model, config.quant, config.train.precision)
    seconds = time.perf_counter() - began
    figures = torch.tensor([seconds, time.process_time() - cores, peak.stop(), read() - before], dtype=torch.float64)
    del active, model
    every = [torch.empty_like(figures) for _ in range(ranks)]
    dist.all_gather(every, figures)
    dist.destroy_process_group()
    slowest, _, largest, _ = torch.stack(every).amax(0).tolist()
    _, core_seconds, _, delivered = torch.stack(every).sum(0).tolist()
    return {"seconds": slowest, "core-seconds": core_seconds, "memory": largest, "read": delivered}


@contextlib.contextmanager
def quantised_whole() -> Iterator[None]:
    """Within, every rank quantises all of a weight, and keeps its share."""
    import torch

    from hydraft.models import nf4
    from hydraft.models.sharded_load import Sharding

    def quantise(self: Any, layer: Any, weight: torch.Tensor) -> torch.nn.Parameter:
        payload = nf4.Payload(weight.shape, layer.weight.compress_statistics, self.ranks)
        codes, state = nf4.quantise_whole(weight, payload.double, torch.uint8, self.device)
        return self._held(layer, payload, payload.packed(codes, state, self.rank), state)  # type: ignore[no-any-return]

    kept = Sharding.quantise
    Sharding.quantise = quantise  # type: ignore[method-assign]
    try:
        yield
    finally:
        Sharding.quantise = kept  # type: ignore[method-assign]


def write_models(shape: str, folder: Path) -> None:
    """Write random weights of a shape to ``folder/native``, and the same in 4 bits, as transformers saves them, to ``folder/stored``."""
    os.environ["HYDRAFT_CACHE"] = str(folder)
    from bench.equivalence import compose_run
    from hydraft.models import prepare

    config = compose_run([*SHAPES[shape].split(), "model.init=random", "quant=none"])
    native, stored = Path(prepare.native(config.model, config.seed).path), folder / "stored"
    plain(native).save_pretrained(stored, max_shard_size="2GB")
    for file in native.glob("*token*"):
        (stored / file.name).write_bytes(file.read_bytes())
    (folder / "native").symlink_to(native)


def main() -> None:
    """Run the variants in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", choices=("plain", "ours", "sharded", "whole"), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ranks", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        print(json.dumps(load(options.rank, options.model, options.ranks)))
        return
    if options.write:
        write_models(options.shape, options.write)
        return
    from bench import ranks
    from bench.results import write

    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        # pages that a process has mapped are not dropped
        subprocess.run([sys.executable, __file__, "--write", name, "--shape", options.shape], check=True)
        folders = (Path(name, "native"), Path(name, "stored"))
        for turn in range(1, options.rounds + 1):
            for variant, (how, count, stored) in VARIANTS.items():
                drop(folders[stored])
                command = [
                    sys.executable,
                    __file__,
                    "--rank",
                    how,
                    "--model",
                    str(folders[stored]),
                    "--ranks",
                    str(count),
                ]
                found[variant].append(ranks.run(command, count, max(1, cores // count), **RETURNED))
                print(f"round {turn}: {variant} {found[variant][-1]['seconds']:.1f} s", file=sys.stderr)
    print("| loaded with | seconds | core-seconds | memory, GiB | read, GiB |\n" + "|---" * 5 + "|")
    median = {name: {key: statistics.median(one[key] for one in runs) for key in UNITS} for name, runs in found.items()}
    for variant, figures in median.items():
        cells = [
            f"{figures[key] / unit:.{digits}f} ({figures[key] / median[BASELINE][key]:.2f})"
            for key, (unit, digits) in UNITS.items()
        ]
        print(f"| {variant} | {' | '.join(cells)} |")
    print(f"\n{write(f'loading-{options.shape}', median, 'cpu')}")


if __name__ == "__main__":
    main()
