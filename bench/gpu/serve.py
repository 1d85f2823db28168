"""Tokens/s and time to the first token of mode=serve with 1, 16 and 32 concurrent requests, as JSON.

    python -m bench.gpu.serve OUT.json RUN… [--tokens 48]

The first RUN that has an adapter is served.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.serve import Pass, Server, drive, free_port

ROOT = Path(__file__).parents[2]
PASSES = ((1, 3), (16, 32), (32, 64))
"""Concurrent requests, and requests in total."""
SETTINGS = ("mode=serve", "serve.max_running=32", "serve.cache_tokens=32768")
START = 80
"""Seconds within which the server must have started."""


def served(runs: list[Path]) -> Path:
    """The first run with an adapter.

    Raises:
        SystemExit: no run has one.
    """
    for run in runs:
        if (run / "adapter/adapter_model.safetensors").is_file():
            return run
    sys.exit(f"none of {', '.join(map(str, runs))} has an adapter")


def figures(at_once: int, result: Pass) -> dict[str, Any]:
    """The figures of a pass."""
    return {
        "at_once": at_once,
        "tokens_per_second": round(result.rate, 1),
        "first_p50_ms": round(1000 * statistics.median(result.first)) if result.first else None,
        "first_max_ms": round(1000 * max(result.first)) if result.first else None,
    }


def card_memory() -> list[str]:
    """GPU memory of each process, as nvidia-smi prints it; empty without a GPU."""
    command = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")[:-1]
    except OSError:
        return []


def main() -> None:
    """Start the server, measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=48, help="maximum tokens of an answer")
    options = parser.parse_args()
    run = served(options.runs)
    records = json.loads((ROOT / "data/zh_tasks.train.json").read_text(encoding="utf-8"))[: max(n for _, n in PASSES)]
    prompts = ["\n".join(filter(None, (record["instruction"], record.get("input")))) for record in records]
    port = free_port()
    command = [sys.executable, str(ROOT / "infer.py"), f"run={run}", f"serve.port={port}", *SETTINGS]
    log = options.out.with_suffix(".server.log")
    server = Server("hydraft", command, None, f"http://127.0.0.1:{port}", log, START)
    found: dict[str, Any] = {"run": run.name, "started_seconds": round(server.started, 1), "passes": []}
    try:
        asyncio.run(drive(server, prompts[:4], 8, 4))  # warm-up
        for at_once, count in PASSES:
            result = asyncio.run(drive(server, prompts[:count], options.tokens, at_once))
            found["passes"].append(figures(at_once, result))
            print(found["passes"][-1], flush=True)
            options.out.write_text(json.dumps(found))  # written after each pass, in case the server fails later
        found["card"] = card_memory()
        options.out.write_text(json.dumps(found))
    finally:
        server.end()
        print(log.read_text()[-1500:])


if __name__ == "__main__":
    main()
