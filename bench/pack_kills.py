"""A pack that is killed (SIGKILL) at random moments and resumed after each: its members beside those of a pack that is not.

    python bench/pack_kills.py [--kills 10] [--seed 0]

Four members of 24 steps with a checkpoint every 3 steps, in fp32 on a CPU. A row of the base's product has the same bits in most
passes, whatever other rows there are, but not in all: members that resume from different steps meet other micro-batches than
before, and may then differ by rounding.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]
from bench.equivalence import read  # noqa: E402
from bench.packs import apart  # noqa: E402
from hydraft.sweep.results.ledger import Ledger  # noqa: E402

STEPS = 24
TOLERANCE = 1e-4
"""For members that met other micro-batches than before: rounding, as 24 steps amplify it."""
SWEEP = [
    "lora.r=2,4", "train.learning_rate=5e-4,1e-3", "quant=none", "data.eval=null", f"train.max_steps={STEPS}", "train.micro_batch_size=4",
    "train.save_every=3", "train.save_minutes=null", "train.log_every=1", "optimizer.eps=1e-3", "lora.dropout=0.1",
    "hydra.launcher.pack=4", "hydra.launcher.jobs=1",
]  # fmt: skip


def start(folder: Path) -> "subprocess.Popen[str]":
    """Start the sweep in ``folder``, or resume it."""
    known = (folder / "ledger.jsonl").exists()
    where = [f"sweep.resume={folder}", "sweep.retry_failed=true"] if known else [f"hydra.sweep.dir={folder}"]
    command = [sys.executable, "train.py", "-m", *SWEEP, *where]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def steps(folder: Path) -> int:
    """The steps that all members have logged."""
    return sum(len(file.read_text().splitlines()) for file in folder.glob("*/metrics.jsonl"))


def process_of(sweep: int, folder: Path) -> psutil.Process | None:
    """The process of the pack; None before it has started."""
    for process in psutil.Process(sweep).children(recursive=True):
        try:
            if any(Path(file.path).match(f"{folder.name}/pack-*.log") for file in process.open_files()):
                return process
        except psutil.Error:
            continue
    return None


def killed_once(folder: Path, after: int) -> str:
    """Run the sweep until its members have trained ``after`` more steps in all, and kill the pack; the states of its jobs then."""
    sweep, target = start(folder), steps(folder) + after
    while sweep.poll() is None:
        found = process_of(sweep.pid, folder) if steps(folder) >= target else None
        if found is not None:
            found.kill()
            break
        time.sleep(0.005)
    sweep.communicate()
    return ", ".join(sorted(job.state.value for job in Ledger(folder).jobs().values()))


def main() -> int:
    """Print a line for each kill and a table of the members; 1 if one is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        whole, broken = Path(name, "whole"), Path(name, "broken")
        output, _ = (done := start(whole)).communicate()
        if done.returncode:
            sys.exit(output)
        for number in range(options.kills):
            after = chance.randrange(1, max(2, 4 * STEPS // options.kills + 3))
            states = killed_once(broken, after)
            print(
                f"kill {number + 1}, after {after} steps of its members: {states}; {steps(broken)} steps logged",
                flush=True,
            )
        output, _ = (done := start(broken)).communicate()
        if done.returncode:
            sys.exit(output)
        print("\n| member | bit-equal | loss | gradient norm | adapter |\n|---|---|---|---|---|")
        worst = 0.0
        for folder in sorted(path.parent for path in whole.glob("*/result.json")):
            found, expected = read(broken / folder.name), read(folder)
            differences = apart(found, expected)
            same = json.dumps([found.losses, found.grad_norms]) == json.dumps([expected.losses, expected.grad_norms])
            same &= all(bool((found.adapter[name] == tensor).all()) for name, tensor in expected.adapter.items())
            numbers = " | ".join(f"{each:.1e}" for each in differences)
            print(f"| {folder.name} | {'yes' if same else 'no'} | {numbers} |")
            worst = max(worst, *differences)
    return 0 if worst < TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
