"""How long a person waits for an answer that needs no training: medians of 5 whole processes, in turn.

    python bench/startup.py

The baseline is importing torch, which none of these may do.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "python train.py --help": [sys.executable, "train.py", "--help"],
    "python train.py lora.r=0 (refused)": [sys.executable, "train.py", "lora.r=0"],
    "python train.py mode=plan model=llama3 cluster.gpu_memory=24GiB": [
        *(sys.executable, "train.py", "mode=plan", "model=llama3", "cluster.gpu_memory=24GiB")
    ],
    "python infer.py --help": [sys.executable, "infer.py", "--help"],
    "python -c 'import torch' (baseline)": [sys.executable, "-c", "import torch"],
}
RUNS = 5


def main() -> None:
    """Time the commands A B C D A B C D … and print the medians."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS + 1):  # the first round warms the file cache
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
            seconds[name].append(time.perf_counter() - start)
    baseline = statistics.median(seconds["python -c 'import torch' (baseline)"][1:])
    print("| command | seconds (median of 5) | of importing torch |\n|---|---|---|")
    for name, times in seconds.items():
        median = statistics.median(times[1:])
        print(f"| `{name}` | {median:.2f} | {median / baseline:.2f} |")


if __name__ == "__main__":
    main()
