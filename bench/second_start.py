"""Measure the start of a run that quantises: the first, which makes the quantised copy, and the second, which reads it.

    python bench/second_start.py                # Qwen2.5-0.5B's shape, random weights (1 GB on disk)
    python bench/second_start.py --shape 8b     # Llama-3.1-8B's (22 GB on disk)

A start is what the launching process does (making or verifying the copy) and then two ranks, which load the model under ZeRO-3. Seconds
are without imports of the ranks; bytes read are those that the disk delivered to all processes. Before a start the files are
dropped from the page cache.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from bench.loading import SHAPES, drop  # noqa: E402

RANKS = 2


def prepare(shape: str, quantised: bool) -> dict[str, float | str]:
    """Prepare the model as the launching process does: its folder, seconds and bytes read."""
    from bench.equivalence import compose_run
    from hydraft.models import prepare, quantised_copy

    precision, quant = "train.precision=bf16", "quant=nf4" if quantised else "quant=none"
    config = compose_run([*SHAPES[shape].split(), "model.init=random", "model.cache_quantised=true", precision, quant])
    storage = quantised_copy.of_run(config)
    began = time.perf_counter()
    folder = prepare.native(config.model, config.seed, storage=storage).path
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    delivered = 512 * sum(resource.getrusage(who).ru_inblock for who in both)
    return {"folder": folder, "seconds": time.perf_counter() - began, "read": delivered}


def main() -> None:
    """Measure both starts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--prepare", choices=("native", "copy"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        print(json.dumps(prepare(options.shape, options.prepare == "copy")))
        return
    from bench import ranks
    from bench.results import write

    cores = len(os.sched_getaffinity(0))
    found = {}
    with tempfile.TemporaryDirectory() as name:
        environment = {**os.environ, "HYDRAFT_CACHE": name}

        def prepared(what: str) -> dict[str, float | str]:
            command = [sys.executable, __file__, "--shape", options.shape, "--prepare", what]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            return dict(json.loads(done.stdout.splitlines()[-1]))

        prepared("native")
        for start in ("first", "second"):
            for folder in Path(name, "models").iterdir():
                if folder.is_dir():
                    drop(folder)
            parent = prepared("copy")
            command = [sys.executable, str(ROOT / "bench/loading.py"), "--rank", "sharded"]
            given = ["--model", str(parent["folder"]), "--ranks", str(RANKS)]
            loaded = ranks.run([*command, *given], RANKS, max(1, cores // RANKS))
            found[start] = {
                "preparing": float(parent["seconds"]), "loading": loaded["seconds"],
                "read": float(parent["read"]) + loaded["read"],
            }  # fmt: skip
    print("| start | preparing, seconds | loading, seconds | read, GiB |\n" + "|---" * 4 + "|")
    for start, one in found.items():
        print(f"| {start} | {one['preparing']:.1f} | {one['loading']:.1f} | {one['read'] / 2**30:.2f} |")
    whole = {start: one["preparing"] + one["loading"] for start, one in found.items()}
    print(f"\nthe second start takes {whole['second'] / whole['first']:.2f} of the first's time")
    print(write(f"second-start-{options.shape}", found, "cpu"))


if __name__ == "__main__":
    main()
