"""Collects results.json and a summary table from the scratch folder. Does not import torch."""

import json
import statistics
import tarfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from bench.gpu import packs
from bench.gpu.flops import of_folder
from bench.gpu.steps import OK, Outcome
from bench.memory import RESIDENT, compared
from bench.results import FOLDER

WARM_UP = 2
"""Lines of metrics.jsonl that are left out of the timing, if there are more than these."""
KEPT = (".json", ".jsonl", ".log", ".yaml", ".txt", ".err")
LARGEST = 3 << 20
"""Largest file in bytes that goes into logs.tgz."""


def read(file: Path) -> Any:
    """Content of a JSON file; {} if it is missing or incomplete."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def lines(file: Path) -> list[Any]:
    """Lines of a .jsonl file; an incomplete last line is ignored."""
    found = []
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def run(folder: Path, peak: float | None) -> dict[str, Any]:
    """The figures of a run of train.py; ``peak`` is the matmul rate in FLOP/s."""
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    result, cost = read(folder / "result.json"), read(folder / "plan.json").get("cost") or {}
    trained = [line for line in lines(folder / "metrics.jsonl") if "learning_rate" in line]
    speeds = [line["tokens_per_second"] for line in trained]
    timed = Path(config["model"]["path"]).parent == folder.parent / "models"  # the others ran concurrently
    speed = statistics.median(speeds[WARM_UP:] or speeds) if speeds and timed else None
    memory = compared(folder)
    planned, measured = memory.get("training") or memory.get(RESIDENT) or (None, None)
    work = None
    if timed and cost:
        recomputes = config["train"]["gradient_checkpointing"] is True
        work = of_folder(
            Path(config["model"]["path"]), cost["parameters"], cost["trained"], config["data"]["max_length"], recomputes
        )
    return {
        "status": result.get("status", "did not finish"),
        "error": result.get("error"),
        "tokens_per_second": speed,
        "flops_per_token": work.per_token if work else None,
        "mfu": work.utilisation(speed, peak) if work and speed and peak else None,
        "planned_bytes": planned,
        "peak_memory_bytes": measured,
        "memory": {moment: {"plan": plan, "measured": real} for moment, (plan, real) in memory.items()},
        "plan_off": planned / measured - 1 if planned and measured else None,
        "losses": [line["loss"] for line in trained],
        "before": result.get("before"),
        "after": result.get("after"),
    }


def other(found: dict[str, Any], peak: float | None) -> dict[str, Any]:
    """The figures of bench.gpu.trainer, with the keys of a run."""
    work = None
    if found.get("parameters"):
        work = of_folder(
            Path(found["model"]), found["parameters"], found["trained"], found["length"], found["recomputes"]
        )
    speed = found["tokens_per_second"]
    return {
        "status": "finished",
        "tokens_per_second": speed,
        "flops_per_token": work.per_token if work else None,
        "mfu": work.utilisation(speed, peak) if work and peak else None,
        "planned_bytes": None,
        "peak_memory_bytes": found["peak_memory_bytes"],
        "losses": found["losses"],
    }


def gather(scratch: Path, outcomes: Iterable[Outcome]) -> dict[str, Any]:
    """Everything that has been measured so far."""
    probes = list({probe["probe"]: probe for probe in lines(scratch / "probes.jsonl")}.values())  # the latest of each
    peak = next((probe["answer"]["FLOP/s"] for probe in probes if probe["probe"] == "matmul" and probe["answer"]), None)
    runs = {file.parent.name: run(file.parent, peak) for file in sorted(scratch.glob("*/config.yaml"))}
    for file in sorted(scratch.glob("*.json")):
        found = read(file)
        if isinstance(found, dict) and "tokens_per_second" in found:
            runs[file.stem] = other(found, peak)
    return {
        "matmul_flops": peak,
        "runs": runs,
        "serve": read(scratch / "serve.json"),
        "packs": packs.figures(scratch),
        "probes": probes,
        "steps": [asdict(outcome) for outcome in outcomes],
    }


def _gib(size: float | None) -> str:
    return f"{size / 2**30:.2f}" if size else "–"


def table(found: dict[str, Any]) -> str:
    """The summary in Markdown: runs, served tokens, probes, and the steps."""
    rows = ["| run | | tokens/s | MFU | peak GiB | plan GiB | plan off | loss |", "|---|---|---|---|---|---|---|---|"]
    for name, run in found["runs"].items():
        speed, off = run["tokens_per_second"], run.get("plan_off")
        loss = f"{run['losses'][0]:.3f} → {run['losses'][-1]:.3f}" if run["losses"] else "–"
        cells = [
            name, run["status"], f"{speed:,.0f}" if speed else "–", f"{run['mfu']:.1%}" if run["mfu"] else "–",
            _gib(run["peak_memory_bytes"]), _gib(run["planned_bytes"]), f"{off:+.0%}" if off is not None else "–", loss,
        ]  # fmt: skip
        rows.append(f"| {' | '.join(cells)} |")
    if found["matmul_flops"]:
        rows.append(
            f"\nMFU is relative to {found['matmul_flops'] / 1e12:,.1f} TFLOP/s, this machine's measured matmul rate."
        )
    if passes := found["serve"].get("passes"):
        rows += [f"\n| serve, {found['serve']['run']} | tokens/s | first token p50 | max |", "|---|---|---|---|"]
        rows += [
            f"| {one['at_once']} at once | {one['tokens_per_second']:,.0f} | {one['first_p50_ms']} ms | {one['first_max_ms']} ms |"
            for one in passes
        ]
    if packed := found.get("packs"):
        rows += [
            "\n| pack | |",
            "|---|---|",
            *(f"| {name.replace('_', ' ')} | {value:,.2f} |" for name, value in packed.items()),
        ]
    rows += ["\n| probe | answer |", "|---|---|"]
    rows += [f"| {probe['probe']} | {_answer(probe)} |" for probe in found["probes"]]
    rows += ["\n| step | | seconds | limit |", "|---|---|---|---|"]
    for step in found["steps"]:
        detail = (
            f": {step['said']}" if step["status"].startswith(("failed", "out of")) or step["name"] == "pytest" else ""
        )
        rows.append(
            f"| {step['name']} | {step['status']}{detail.replace('|', '/')} | {step['seconds']:.0f} | {step['limit']:.0f} |"
        )
    good = sum(step["status"] == OK for step in found["steps"])
    return "\n".join([*rows, f"\n{good} of {len(found['steps'])} steps ok"])


def _answer(probe: dict[str, Any]) -> str:
    if probe["answer"] is None:
        return str(probe["error"])[:200].replace("|", "/")
    return ", ".join(f"{name}: {value}" for name, value in probe["answer"].items()).replace("|", "/")


def pack(scratch: Path, target: Path, figures: Path = FOLDER) -> None:
    """Pack logs, configs, plans and metrics of all steps, and the result files in ``figures``, without weights."""
    with tarfile.open(target, "w:gz") as archive:
        for file in sorted(figures.glob("*.json")):
            archive.add(file, f"bench-results/{file.name}")
        for file in sorted(scratch.rglob("*")):
            inside = file.relative_to(scratch)
            if file.suffix not in KEPT or inside.parts[0] in ("models", "cache") or inside.name == "records.json":
                continue
            if {"adapter", "model", "checkpoints"} & set(inside.parts) or not file.is_file():
                continue
            if file.stat().st_size <= LARGEST:
                archive.add(file, str(inside))
